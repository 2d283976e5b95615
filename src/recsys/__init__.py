"""Learned retrieval: two-tower models, from logged engagement to paired, versioned releases."""
