"""A look into one finished run: where it fails, what lies near what, how the embedding space is laid out."""
