"""data/tvl1/tensor.py: against motions known by formula, against OpenCV's DualTVL1, against ground truth."""

from __future__ import annotations

import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.tvl1 import is_installed
from data.tvl1 import tensor as tvl1
from data.tvl1.parameters import OPENCV_DEFAULTS, TVL1
from data.tvl1.tensor import tvl1_pairs

BACKENDS = [
    "torch",
    pytest.param(
        "numba", marks=pytest.mark.skipif(not is_installed("numba"), reason="numba or OpenCV isn't installed")
    ),
]
# The binaries of OpenCV's wheels round as data/tvl1/cpu.py does on this platform; elsewhere compilers may fuse a
# multiplication and an addition into one rounding.
SAME_ROUNDING = platform.system() == "Linux" and platform.machine() == "x86_64"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def opencv_flow():
    """OpenCV's flow of one pair of grey uint8 images (H, W), called as its documentation does: float32 (H, W, 2)."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "optflow"):
        pytest.skip("this OpenCV has no optflow module")
    return lambda first, second: cv2.optflow.createOptFlow_DualTVL1().calc(first, second, None)


def flow_of(first: np.ndarray, second: np.ndarray, backend: str, parameters: TVL1 = OPENCV_DEFAULTS) -> np.ndarray:
    flow = tvl1_pairs(torch.from_numpy(first)[None], torch.from_numpy(second)[None], parameters, backend)
    return flow[0].permute(1, 2, 0).numpy()


def moving_texture(height: int, width: int, *motions: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two uint8 images (pairs, height, width) of a smooth random texture that moves by each motion, x and y pixels."""
    rng = np.random.default_rng(0)
    waves = (rng.random((40, 3)) - 0.5) / 4  # periods of 8 pixels and more
    rows, columns = np.mgrid[:height, :width]

    def picture(dx: float, dy: float) -> np.ndarray:
        turns = [fx * (columns - dx) + fy * (rows - dy) + 8 * phase for fx, fy, phase in waves]
        return np.clip(127.5 + 18 * np.sin(2 * np.pi * np.array(turns)).sum(0), 0, 255).astype(np.uint8)

    images = [np.stack([picture(*motion) for motion in some]) for some in ([(0, 0)] * len(motions), motions)]
    return torch.from_numpy(images[0]), torch.from_numpy(images[1])


def grey_levels(flow: np.ndarray) -> np.ndarray:
    return np.round(255 * (np.clip(flow, -20, 20) + 20) / 40)


def end_point_error(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.hypot(*np.moveaxis(one - two, -1, 0))


def real_frames(shared, name: str, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """The first grey frames of a UCF101 clip, at (width, height)."""
    cv2 = pytest.importorskip("cv2")
    video = cv2.VideoCapture(str(next((shared / "data/ucf101_clips").rglob(f"{name}.avi"))))
    frames = [video.read()[1] for _ in range(count)]
    return [cv2.cvtColor(cv2.resize(frame, size), cv2.COLOR_BGR2GRAY) for frame in frames]


def ground_truth(shared, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cv2 = pytest.importorskip("cv2")
    folder = shared / "data/flow_pairs"
    first, second = (cv2.imread(str(folder / f"{number:05d}_img{k}.ppm"), cv2.IMREAD_GRAYSCALE) for k in (1, 2))
    data = (folder / f"{number:05d}_flow.flo").read_bytes()
    return first, second, np.frombuffer(data, "<f4", offset=12).reshape(*first.shape, 2)


# Motions about the centre: the pixel at x goes to matrix @ x + shift.
TURN, ZOOM = math.radians(1.5), 1.04
MOTIONS = {
    "rest": (np.eye(2), (0, 0)),
    "translation": (np.eye(2), (2.3, -1.4)),
    "zoom": (ZOOM * np.eye(2), (0, 0)),
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
    expected = centred @ matrix.T + shift - centred
    flow = flow_of(texture(centred), second, backend)
    inside = (slice(10, -10), slice(10, -10))  # nothing tells where what left the image went
    assert end_point_error(flow, expected)[inside].mean() < 0.1
    if motion == "rest":
        assert np.all(flow == 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["v_Biking_g01_c04", "v_HammerThrow_g10_c03"])
def test_agrees_with_opencv_on_real_frames(shared, opencv_flow, backend, name):
    frames = real_frames(shared, name, (160, 120), 3)
    expected = np.stack([opencv_flow(first, second) for first, second in itertools.pairwise(frames)])
    flow = np.stack([flow_of(first, second, backend) for first, second in itertools.pairwise(frames)])
    assert_agrees(flow, expected, backend)


def assert_agrees(flow: np.ndarray, expected: np.ndarray, backend: str) -> None:
    """By the project's measure; bit for bit where the same arithmetic can be expected."""
    moving = np.hypot(*np.moveaxis(expected, -1, 0)) > 0.5
    assert moving.mean() > 0.05
    assert end_point_error(flow, expected)[moving].mean() < 0.1
    assert (np.abs(grey_levels(flow) - grey_levels(expected)) <= 1).mean() >= 0.95
    if backend == "numba" and SAME_ROUNDING:
        np.testing.assert_array_equal(flow, expected)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_as_near_to_the_ground_truth_as_opencv(shared, opencv_flow, number):
    """The quarter in the middle of the three pairs, on the CPU's backend."""
    if not is_installed("numba"):
        pytest.skip("numba isn't installed")
    middle = (slice(96, 288), slice(128, 384))
    first, second, truth = (np.ascontiguousarray(image[middle]) for image in ground_truth(shared, number))
    ours = end_point_error(flow_of(first, second, "numba"), truth).mean()
    theirs = end_point_error(opencv_flow(first, second), truth).mean()
    assert ours <= theirs + (0 if SAME_ROUNDING else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_whole_pairs_with_ground_truth(shared, opencv_flow, backend, number):
    first, second, truth = ground_truth(shared, number)
    flow, expected = flow_of(first, second, backend), opencv_flow(first, second)
    assert_agrees(flow, expected, backend)
    ours, theirs = end_point_error(flow, truth).mean(), end_point_error(expected, truth).mean()
    # Rounding moves the iteration at which the rule stops, and that moves the error by some thousandths, up or down.
    assert ours <= theirs + (0 if backend == "numba" and SAME_ROUNDING else 0.005)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["v_Biking_g01_c04", "v_BenchPress_g01_c01", "v_JavelinThrow_g05_c05"])
def test_a_real_clip_at_full_size(shared, opencv_flow, backend, name):
    frames = real_frames(shared, name, (340, 256), 11)
    pairs = list(itertools.pairwise(frames))
    flow = np.stack([flow_of(first, second, backend) for first, second in pairs])
    assert_agrees(flow, np.stack([opencv_flow(first, second) for first, second in pairs]), backend)


@pytest.mark.parametrize(
    "parameters",
    [
        TVL1(tau=0.2, lambda_=0.3, theta=0.2, scales=3, scale_step=0.5, warps=2),
        TVL1(epsilon=0, inner_iterations=7, outer_iterations=2, median_size=1),
        TVL1(median_size=3, scales=1, warps=1),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_mean_what_opencv_means(backend, parameters):
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "optflow"):
        pytest.skip("this OpenCV has no optflow module")
    first, second = (images[0].numpy() for images in moving_texture(60, 70, (0.9, 0.6)))
    method = cv2.optflow.createOptFlow_DualTVL1()
    for name, value in {
        "Tau": parameters.tau, "Lambda": parameters.lambda_, "Theta": parameters.theta,
        "ScalesNumber": parameters.scales, "ScaleStep": parameters.scale_step,
        "WarpingsNumber": parameters.warps, "Epsilon": parameters.epsilon,
        "InnerIterations": parameters.inner_iterations, "OuterIterations": parameters.outer_iterations,
        "MedianFiltering": parameters.median_size,
    }.items():  # fmt: skip
        getattr(method, f"set{name}")(value)
    expected = method.calc(first, second, None)
    assert np.abs(expected).max() > 0.3
    inside = (slice(8, -8), slice(8, -8))
    assert end_point_error(flow_of(first, second, backend, parameters), expected)[inside].mean() < 0.01
    opencv = flow_of(first, second, "opencv", parameters)
    np.testing.assert_array_equal(opencv, expected)


def test_defaults_are_opencvs():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "optflow"):
        pytest.skip("this OpenCV has no optflow module")
    method = cv2.optflow.createOptFlow_DualTVL1()
    defaults = (
        method.getTau(), method.getLambda(), method.getTheta(), method.getScalesNumber(), method.getScaleStep(),
        method.getWarpingsNumber(), method.getEpsilon(), method.getInnerIterations(), method.getOuterIterations(),
        method.getMedianFiltering(),
    )  # fmt: skip
    ours = TVL1()
    assert defaults == (
        ours.tau, ours.lambda_, ours.theta, ours.scales, ours.scale_step, ours.warps, ours.epsilon,
        ours.inner_iterations, ours.outer_iterations, ours.median_size,
    )  # fmt: skip


def solve_at_once(first, second, parameters, check_every, iterate=tvl1._iterate):
    """What a GPU does: all pairs in one batch."""
    steps = (iterate, tvl1._median)
    return tvl1._solve_pyramid(first.float(), second.float(), parameters, check_every, steps)


def mixed_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Four pairs that come to rest after very different numbers of iterations; one is at rest from the start."""
    return moving_texture(48, 64, (2.5, 1), (0.2, 0), (0, 0), (-1, 1.5))


def test_a_pair_has_the_flow_it_has_alone():
    first, second = mixed_pairs()
    together = solve_at_once(first, second, TVL1(), check_every=1)
    alone = tvl1_pairs(first, second, backend="torch")
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)
    assert torch.all(together[2] == 0)


def test_how_often_pairs_at_rest_leave_changes_nothing():
    first, second = mixed_pairs()
    often, rarely = (solve_at_once(first, second, TVL1(), check_every) for check_every in (1, 5))
    torch.testing.assert_close(rarely, often, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("epsilon", "per_warp"), [(0, 3 * 4), (1e9, 1)])
def test_iterations_done(epsilon, per_warp):
    """epsilon 0 never stops early, a huge one after the first iteration of every warp."""
    parameters = TVL1(scales=2, warps=3, epsilon=epsilon, inner_iterations=4, outer_iterations=3)
    done = 0

    def iterate(*arguments):
        nonlocal done
        done += 1
        return tvl1._iterate(*arguments)

    solve_at_once(*moving_texture(40, 40, (1.5, -0.75), (1, 1)), parameters, check_every=1, iterate=iterate)
    assert done == 2 * 3 * per_warp


@pytest.mark.parametrize("size", [3, 5])
def test_median(size):
    images = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(size))
    padded = np.pad(images.numpy(), ((0, 0), (size // 2,) * 2, (size // 2,) * 2), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    np.testing.assert_array_equal(tvl1._median(images, size).numpy(), np.median(windows, axis=(3, 4)))


def test_pyramid():
    """OpenCV rounds 0.8 times a side to the nearest, and stops before a side is under 16."""
    assert TVL1().pyramid(256, 340) == [(256, 340), (205, 272), (164, 218), (131, 174), (105, 139)]
    assert TVL1().pyramid(24, 100) == [(24, 100), (19, 80)]
    assert TVL1().pyramid(8, 8) == [(8, 8)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_and_bytes_are_the_same_images(backend):
    first, second = moving_texture(40, 50, (1.5, -0.75))
    flow = tvl1_pairs(first, second, backend=backend)
    assert flow.shape == (1, 2, 40, 50)
    assert flow.dtype == torch.float32
    assert torch.equal(tvl1_pairs(first.double(), second.double(), backend=backend), flow)
    assert tvl1_pairs(first[:0], second[:0], backend=backend).shape == (0, 2, 40, 50)


def test_wrong_arguments():
    image = torch.zeros(1, 20, 20)
    for first, second in [(image, image[:, :10]), (image[0], image[0]), (image[:, :2], image[:, :2])]:
        with pytest.raises(ValueError, match="sides of 3 or more"):
            tvl1_pairs(first, second)
    with pytest.raises(ValueError, match="'cuda' is none of"):
        tvl1_pairs(image, image, backend="cuda")


def test_batch_follows_the_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 80 << 30))
    few = tvl1.automatic_batch_frames(1080, 1920, "cuda")
    assert few == (4 << 30) // (tvl1.BYTES_PER_PIXEL * 1080 * 1920)
    assert tvl1.automatic_batch_frames(1080, 1920, "cuda", workers=2) == few // 2
    assert tvl1.automatic_batch_frames(240, 320, "cuda") == 64
    assert tvl1.automatic_batch_frames(20000, 20000, "cuda") == 1
    assert tvl1.automatic_batch_frames(240, 320, "cpu") >= 1


def test_numba_needs_no_folder_to_keep_its_code_in():
    """Both the project and the user's cache folder may be read-only, as in a container."""
    if not is_installed("numba"):
        pytest.skip("numba isn't installed")
    root = Path(tvl1.__file__).parents[2]
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}  # and none is provided
    subprocess.run([sys.executable, "-c", "import data.tvl1.cpu"], cwd=root, env=os.environ | nowhere, check=True)


def test_runs_without_opencv_and_numba():
    code = (
        "import sys; sys.modules['cv2'] = sys.modules['numba'] = None\n"
        "import torch\n"
        "from data.tvl1.tensor import suitable_backends, tvl1_pairs\n"
        "one = torch.arange(40.)[:, None] / 3 + torch.arange(50.) / 5\n"
        "images = [(127 + 99 * torch.sin(one + shift)).byte()[None] for shift in (0, 0.4)]\n"
        "print(bool(tvl1_pairs(*images).abs().max() > 0.5), *suitable_backends())\n"
    )
    root = Path(tvl1.__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert process.stdout.split() == ["True", "torch"]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
def test_compiled_agrees():
    first, second = mixed_pairs()
    flows = [tvl1_pairs(first, second, backend=backend) for backend in ("torch", "compiled")]
    assert (flows[0] - flows[1]).norm(dim=1).mean() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "compiled"])
def test_gpu_agrees_with_the_cpu(backend):
    first, second = mixed_pairs()
    expected = tvl1_pairs(first, second, backend="torch")
    flow = tvl1_pairs(first.cuda(), second.cuda(), backend=backend)
    assert flow.is_cuda
    assert (flow.cpu() - expected).norm(dim=1).mean() < 0.02
