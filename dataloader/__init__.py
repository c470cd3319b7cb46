"""Split lists, frame layouts, sampling, transforms, and the datasets of both streams."""
