"""What predict.py is made of: frames of a video or camera, windows of them, answers, and the film that shows them."""
