"""Tables, plots and HTML pages about runs, releases and generators."""
