"""The results of fusion.py: intervals and significance tests, tables, plots, and the HTML report."""
