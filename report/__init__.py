"""What fusion.py reads and shows: predictions, intervals and tests, tables, plots, the HTML page."""
