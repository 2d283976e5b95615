"""From a configuration to a finished run, and the comparison of variants while they train."""
