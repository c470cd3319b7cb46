"""Training and evaluation of one stream: its flags, its state, one epoch of steps, and the whole run."""
