"""Shared by all other packages: command lines, accuracy, file formats, progress, timm's networks."""
