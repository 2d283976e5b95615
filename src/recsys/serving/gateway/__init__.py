"""The gateway: user embeddings, routing to hosts, and merged answers."""
