"""Exact evaluation over the full corpus."""
