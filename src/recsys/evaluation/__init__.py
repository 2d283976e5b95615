"""Full-corpus, exact evaluation."""
