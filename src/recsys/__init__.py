"""Learned retrieval: two-tower models, from logged engagement to paired, versioned releases."""

__version__ = "0.1.0"
