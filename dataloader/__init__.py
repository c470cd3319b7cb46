"""Split lists, frame layouts, sampling and transforms, and the two streams' datasets."""
