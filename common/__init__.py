"""What every other folder may use: command lines, metrics, progress, networks of timm."""
