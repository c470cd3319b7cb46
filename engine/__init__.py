"""Training and testing a stream: its flags, its state, an epoch of it, and the run that they make."""
