"""Towers: batches -> user and item embeddings."""
