"""Gateway: embeds users, routes searches to hosts and merges their results."""
