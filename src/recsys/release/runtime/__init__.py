"""Retrieval from one release in process. Imports no torch."""
