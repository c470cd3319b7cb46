"""Measurements: `make bench` runs benchmarks/run.py. Nothing here is imported by the program."""
