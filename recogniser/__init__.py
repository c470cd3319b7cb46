"""The parts of predict.py: clips of decoded frames, networks, answers, and films of answers."""
