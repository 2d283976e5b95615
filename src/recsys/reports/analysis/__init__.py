"""Analysis of one finished run: its failures, the neighbours of items, and the embedding space."""
