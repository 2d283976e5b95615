"""Comparison of finished runs: tests over the same users, tables, pictures and one HTML page."""
