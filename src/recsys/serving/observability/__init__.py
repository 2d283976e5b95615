"""Observability of a server: metrics, logs, recall of the index, and sampled requests."""
