"""Files kept on disk: checkpoints, predictions, records, and a reader that never executes their content."""
