"""From raw tables to a prepared data set: flat, memory-mapped columns."""
