"""Turn the raw tables of a source into a prepared data set."""
