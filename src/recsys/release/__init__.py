"""Releases: a user tower and an item index under one version, immutable and verified."""
