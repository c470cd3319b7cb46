"""TV-L1 optical flow: OpenCV's parameters. tensor.py has tensor code for GPUs, cpu.py compiled code for CPUs."""

# TAU, LAMBDA, THETA and EPSILON are named as in the papers.
TAU = 0.25  # time step of the dual variable; convergence is certain up to 0.25
LAMBDA = 0.15  # weight of the data term; smaller is smoother
THETA = 0.3  # coupling of v to u; larger lets v differ more
WEIGHTS = LAMBDA * THETA, THETA, TAU / THETA  # as they occur in tensor.py's eqs. (3) to (5)
SCALES = 5  # images in the pyramid; fewer if a side would be under 16 pixels
SCALE_STEP = 0.8  # size of each scale relative to the previous one
WARPS = 5  # linearisations per scale
EPSILON = 0.01  # stop if the RMS change of u is smaller, in pixels
INNER_ITERATIONS = 30  # between two median filters
OUTER_ITERATIONS = 10  # median filters per warp
MEDIAN_SIZE = 5


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of every scale, from the full image to the coarsest."""
    sizes = [(height, width)]
    while len(sizes) < SCALES:
        height, width = round(height * SCALE_STEP), round(width * SCALE_STEP)
        if min(height, width) < 16:
            break
        sizes.append((height, width))
    return sizes
