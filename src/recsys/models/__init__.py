"""Towers that turn batches into user and item embeddings."""
