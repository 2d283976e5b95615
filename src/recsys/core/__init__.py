"""Errors, schema, instantiation, atomic file writing and arrays on disk: what every other room uses."""
