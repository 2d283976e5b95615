"""Foundation of all other packages: errors, schema, instantiation, atomic file writing and arrays on disk."""
