"""Tables and pictures that look the same in a terminal, a notebook and an HTML page."""
