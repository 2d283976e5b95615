"""Finished runs beside each other: tests over the same users, tables, pictures, one page."""
