"""data/tvl1: both TV-L1 against motions known by formula and against OpenCV's DualTVL1."""

import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data import tvl1 as parameters
from data.flow import best_backend
from data.tvl1 import tensor as tvl1
from data.tvl1.tensor import tvl1_pairs

BACKENDS = ["torch", pytest.param("numba", marks=pytest.mark.skipif(best_backend() != "numba", reason="no numba"))]
# The binaries of OpenCV's wheels round as data/tvl1/cpu.py does on this platform; elsewhere compilers may fuse a
# multiplication and an addition into one rounding.
SAME_ROUNDING = platform.system() == "Linux" and platform.machine() == "x86_64"
needs_optflow = pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="this OpenCV has no optflow module")


def flow_of(first: np.ndarray, second: np.ndarray, backend: str) -> np.ndarray:
    if backend == "opencv":
        return cv2.optflow.createOptFlow_DualTVL1().calc(first, second, None)
    if backend == "numba":
        from data.tvl1.cpu import tvl1_pair

        return tvl1_pair(first, second).transpose(1, 2, 0)
    flow = tvl1_pairs(torch.from_numpy(first)[None], torch.from_numpy(second)[None])
    return flow[0].permute(1, 2, 0).numpy()


def grey_levels(flow: np.ndarray) -> np.ndarray:
    return np.round(255 * (np.clip(flow, -20, 20) + 20) / 40)


def end_point_error(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.hypot(*np.moveaxis(one - two, -1, 0))


# Motions about the centre: the pixel at x goes to matrix @ x + shift.
TURN = math.radians(1.5)
MOTIONS = {
    "rest": (np.eye(2), (0, 0)),
    "translation": (np.eye(2), (2.3, -1.4)),
    "rotation": (np.array([[math.cos(TURN), -math.sin(TURN)], [math.sin(TURN), math.cos(TURN)]]), (0, 0)),
}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_motion_of_a_smooth_texture(backend, motion):
    """The texture is a formula, so the moved image is exact: I1(matrix x + shift) = I0(x)."""
    matrix, shift = MOTIONS[motion]
    rows, columns = np.mgrid[:72, :88].astype(float)
    centred = np.stack([columns - 43.5, rows - 35.5], -1)

    def texture(points: np.ndarray) -> np.ndarray:
        x, y = np.moveaxis(points, -1, 0)
        waves = np.sin(0.41 * x + 0.13 * y) + np.sin(0.37 * y - 0.11 * x + 1) + np.sin(0.23 * (x + y) + 2)
        return np.float32(127 + 40 * waves)

    second = texture((centred - shift) @ np.linalg.inv(matrix).T)
    flow = flow_of(texture(centred), second, backend)
    inside = (slice(10, -10), slice(10, -10))  # nothing tells where what left the image went
    assert end_point_error(flow, centred @ matrix.T + shift - centred)[inside].mean() < 0.1
    if motion == "rest":
        assert np.all(flow == 0)


FULL = [pytest.param(name, (340, 256), 11, marks=pytest.mark.slow)
        for name in ("v_Biking_g01_c04", "v_BenchPress_g01_c01", "v_JavelinThrow_g05_c05")]  # fmt: skip


@needs_optflow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, size, count", [("v_HammerThrow_g10_c03", (120, 90), 2), *FULL])
def test_agrees_with_opencv_on_a_real_clip(shared, backend, name, size, count):
    """By the project's measure; bit for bit where the same arithmetic can be expected."""
    video = cv2.VideoCapture(str(next((shared / "data/ucf101_clips").rglob(f"{name}.avi"))))
    frames = [cv2.cvtColor(cv2.resize(video.read()[1], size), cv2.COLOR_BGR2GRAY) for _ in range(count)]
    expected, flow = (np.stack([flow_of(*pair, method) for pair in itertools.pairwise(frames)])
                      for method in ("opencv", backend))  # fmt: skip
    moving = np.hypot(*np.moveaxis(expected, -1, 0)) > 0.5
    assert moving.mean() > 0.05
    assert end_point_error(flow, expected)[moving].mean() < 0.1
    assert (np.abs(grey_levels(flow) - grey_levels(expected)) <= 1).mean() >= 0.95
    if backend == "numba" and SAME_ROUNDING:
        np.testing.assert_array_equal(flow, expected)


@needs_optflow
def test_the_parameters_are_opencvs_defaults():
    method = cv2.optflow.createOptFlow_DualTVL1()
    names = {"tau": "Tau", "lambda": "Lambda", "theta": "Theta", "scales": "ScalesNumber", "scale_step": "ScaleStep",
             "warps": "WarpingsNumber", "epsilon": "Epsilon", "inner_iterations": "InnerIterations",
             "outer_iterations": "OuterIterations", "median_size": "MedianFiltering"}  # fmt: skip
    for name, getter in names.items():
        assert getattr(method, f"get{getter}")() == getattr(parameters, name.upper())


def mixed_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that come to rest after very different numbers of iterations; one is at rest from the start."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (40, 44)), (0, 0), 2).astype(np.uint8)
    shifted = [texture[4 - y : 36 - y, 4 - x : 40 - x] for x, y in ((0, 0), (3, 1), (0, 0), (-1, 2))]
    first, *second = torch.from_numpy(np.stack(shifted))
    return torch.stack([first] * 3), torch.stack(second)


def test_a_pair_has_the_flow_it_has_alone_however_often_pairs_at_rest_leave(monkeypatch):
    """A GPU solves all pairs in one batch, and asks which are at rest after several iterations."""
    monkeypatch.setattr(parameters, "SCALES", 2)
    monkeypatch.setattr(parameters, "WARPS", 2)
    first, second = mixed_pairs()
    together, rarely = (tvl1._solve_pyramid(first.float(), second.float(), check_every, tvl1._iterate)
                        for check_every in (1, 5))  # fmt: skip
    torch.testing.assert_close(together, tvl1_pairs(first, second), atol=2e-3, rtol=0)
    torch.testing.assert_close(rarely, together, atol=2e-3, rtol=0)
    assert torch.all(together[1] == 0)


def test_numba_needs_no_folder_to_keep_its_code_in_and_without_it_there_is_the_tensor_code():
    """Both the project and the user's cache folder may be read-only, as in a container."""
    code = (
        "import sys\nfrom data.flow import best_backend\nfrom data.tvl1 import cpu\n"
        "sys.modules['data.tvl1.cpu'] = None\nprint(best_backend())"
    )
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}  # and none is provided
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(tvl1.__file__).parents[2],
                             env=os.environ | nowhere, capture_output=True, text=True, check=True)  # fmt: skip
    assert process.stdout.split() == ["torch"]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
def test_compiled_agrees():
    first, second = mixed_pairs()
    flows = [tvl1_pairs(first, second, compiled=compiled) for compiled in (False, True)]
    assert (flows[0] - flows[1]).norm(dim=1).mean() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_agrees_with_the_cpu(compiled):
    first, second = mixed_pairs()
    flow = tvl1_pairs(first.cuda(), second.cuda(), compiled=compiled)
    assert flow.is_cuda
    assert (flow.cpu() - tvl1_pairs(first, second)).norm(dim=1).mean() < 0.02
