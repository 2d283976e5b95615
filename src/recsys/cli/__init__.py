"""The command line: one command with subcommands."""
