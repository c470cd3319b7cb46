"""Prepare a dataset: download, frames, optical flow, splits, checks, the demo set."""
