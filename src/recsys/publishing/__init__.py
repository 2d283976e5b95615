"""From a finished run to a release or a file of recommendations."""
