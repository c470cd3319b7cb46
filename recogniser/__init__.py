"""The parts of predict.py: frames of a video or camera, windows of them, answers, and films of answers."""
