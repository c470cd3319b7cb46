"""TV-L1 optical flow: as tensor code (tensor), as compiled code for processors (cpu), and which to take (backends)."""
