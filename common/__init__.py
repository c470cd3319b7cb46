"""What every other folder may use: command lines, accuracy, progress, networks of timm."""
