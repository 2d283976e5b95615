"""What people look at: tables, plots and HTML pages about runs, releases and generators."""
