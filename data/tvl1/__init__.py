"""TV-L1 optical flow: the parameters. tensor.py has tensor code for GPUs, cpu.py compiled code for CPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TVL1:
    """Parameters with OpenCV's defaults; `tau`, `lambda_`, `theta` and `epsilon` as in the papers."""

    tau: float = 0.25  # time step of the dual variable; convergence is certain up to 0.25
    lambda_: float = 0.15  # weight of the data term; smaller is smoother
    theta: float = 0.3  # coupling of v to u; larger lets v differ more
    scales: int = 5  # images in the pyramid; fewer if a side would be under 16 pixels
    scale_step: float = 0.8  # size of each scale relative to the previous one
    warps: int = 5  # linearisations per scale
    epsilon: float = 0.01  # stop if the RMS change of u is smaller, in pixels; 0 never stops early
    inner_iterations: int = 30  # between two median filters
    outer_iterations: int = 10  # median filters per warp
    median_size: int = 5  # 3 or 5; 1 turns the filter off

    def pyramid(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (height, width) of every scale, from the full image to the coarsest."""
        sizes = [(height, width)]
        while len(sizes) < self.scales:
            height, width = round(height * self.scale_step), round(width * self.scale_step)
            if min(height, width) < 16:
                break
            sizes.append((height, width))
        return sizes


OPENCV_DEFAULTS = TVL1()
