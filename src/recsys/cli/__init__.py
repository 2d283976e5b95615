"""The command line: `recsys`, and one module for each of its subcommands.

A subcommand's module holds its help text (the docstring) and `main`, which takes the composed configuration. The module
imports what it needs inside `main`, so that `recsys SUBCOMMAND --help` starts without torch and Hydra.
"""
