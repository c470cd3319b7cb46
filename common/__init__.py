"""What is kept on disk: checkpoints, predictions, records, and the reader that runs nothing it reads."""
