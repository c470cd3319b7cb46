"""TV-L1 optical flow: its parameters; as tensor code for GPUs (tensor.py), and compiled for processors (cpu.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TVL1:
    """Parameters of the method, OpenCV's defaults; `tau`, `lambda_`, `theta`, `epsilon` as in the papers."""

    tau: float = 0.25  # time step of the dual variable; at most 0.25 for certain convergence
    lambda_: float = 0.15  # weight of the data; smaller is smoother
    theta: float = 0.3  # how far v may leave u
    scales: int = 5  # images of the pyramid; fewer if one had a side under 16 pixels
    scale_step: float = 0.8  # size of each relative to the one before
    warps: int = 5  # linearisations per scale
    epsilon: float = 0.01  # stop when u moves less, root mean square, in pixels; 0 never stops early
    inner_iterations: int = 30  # between two median filters
    outer_iterations: int = 10  # median filters per warp
    median_size: int = 5  # 3 or 5; 1 filters nothing

    def pyramid(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of every scale, from the image's own to the coarsest."""
        sizes = [(height, width)]
        while len(sizes) < self.scales:
            height, width = round(height * self.scale_step), round(width * self.scale_step)
            if min(height, width) < 16:
                break
            sizes.append((height, width))
        return sizes


OPENCV_DEFAULTS = TVL1()
