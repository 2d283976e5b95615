"""Data: raw tables, prepared data sets and batches."""
