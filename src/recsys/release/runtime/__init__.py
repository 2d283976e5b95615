"""Answers requests from one release inside a process. Imports no torch."""
