"""TV-L1 optical flow: as tensor code (tensor.py), compiled for processors (cpu.py), or OpenCV's own.

This file says what can compute it here. It imports no PyTorch, so that a process that needs none
starts fast.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

from data.tvl1.parameters import TVL1

OPENCVS = ("numba", "opencv")  # give OpenCV's flow to the bit, on Linux and x86-64; for processors, pair by pair
BACKENDS = ("compiled", "torch", *OPENCVS)


def suitable_backends(device: str = "cpu") -> list[str]:
    """Backends for a device ("cpu", "cuda:0") that are installed and may be taken for each other, the likeliest first.

    A CPU's all give OpenCV's bytes; the tensor code, which rounds differently, is among them only where there is
    nothing else. So it isn't a measured speed that says which bytes come out.
    """
    if device != "cpu":
        return ["torch", "compiled"]
    return [backend for backend in OPENCVS if is_installed(backend)] or ["torch"]


def is_installed(backend: str) -> bool:
    """Whether the packages that a backend needs are there; "numba" needs OpenCV as well."""
    packages = {"numba": ("numba", "cv2"), "opencv": ("cv2",)}.get(backend, ())
    if any(importlib.util.find_spec(package) is None for package in packages):
        return False
    if backend == "opencv":
        import cv2

        return hasattr(cv2, "optflow")  # only opencv-contrib has it
    return True


def pair_method(backend: str) -> Callable[[np.ndarray, np.ndarray, TVL1], np.ndarray]:
    """One of OPENCVS: from two grey images (H, W) of 0..255 and the parameters to float32 (2, H, W), x then y."""
    if backend == "numba":
        from data.tvl1.cpu import tvl1_pair

        return tvl1_pair
    return opencv_pair


def opencv_pair(first: np.ndarray, second: np.ndarray, parameters: TVL1) -> np.ndarray:
    """OpenCV's own flow, float32 (2, H, W), from grey images of 0..255."""
    import cv2

    if first.dtype != np.uint8:  # of float images it wants 0..1
        first, second = np.float32(first) / 255, np.float32(second) / 255
    method = cv2.optflow.DualTVL1OpticalFlow.create(
        tau=parameters.tau, lambda_=parameters.lambda_, theta=parameters.theta, nscales=parameters.scales,
        warps=parameters.warps, epsilon=parameters.epsilon, innnerIterations=parameters.inner_iterations,
        outerIterations=parameters.outer_iterations, scaleStep=parameters.scale_step,
        medianFiltering=parameters.median_size,
    )  # fmt: skip
    return method.calc(first, second, np.empty((*first.shape, 2), np.float32)).transpose(2, 0, 1)
