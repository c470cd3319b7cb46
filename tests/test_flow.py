"""Optical flow: direction and sign, quantisation, accuracy against ground truth, extraction."""

import argparse
import functools
import hashlib
import itertools
import json
import platform
import sys
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import extract

from data import extract_flow
from data.flow import best_backend, dis_flow, load_raft, quantise, raft_flow, tvl1_flow
from data.videos import VideoError, read_frames
from utils import InputError

cv2 = pytest.importorskip("cv2")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random RGB texture."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    blurred -= blurred.min()
    return (255 * blurred / blurred.max()).astype(np.uint8)


def raft_small(shared: Path) -> Path:
    return shared / "weights" / "raft_small_torchvision.pth"


# --- quantisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [20, 32, 7.5])
def test_quantisation_rounds_half_up_and_clips(bound):
    values = np.float32([*np.linspace(-1.2 * bound, 1.2 * bound, 1001), 0, -0.0, bound, -bound, 1e6, -1e6])
    limit = Fraction(bound)
    clipped = [min(max(Fraction(float(v)), -limit), limit) for v in values]
    expected = [floor(255 * (v + limit) / (2 * limit) + Fraction(1, 2)) for v in clipped]
    quantised = quantise(values, bound)
    assert quantised.dtype == np.uint8
    # float32 may fall on the other side of a tie, but not at the values that matter
    assert np.abs(quantised.astype(int) - expected).max() <= 1
    assert (quantised != expected).mean() < 0.005
    assert quantise(np.float32([0, -bound, bound, -2 * bound, 2 * bound]), bound).tolist() == [128, 0, 255, 0, 255]


# --- methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*(functools.partial(tvl1_flow, backend=b) for b in ("numba", "torch")), dis_flow])
def test_flow_points_from_each_frame_to_the_next(method):
    """Everything moves 3 px to the right and 2 px down, then stands still: u = 3, v = 2, then 0."""
    if method is not dis_flow and method.keywords["backend"] == "numba" != best_backend():
        pytest.skip("numba does not work here")
    big = texture(120, 140)
    one, two = big[20:100, 20:120], big[18:98, 17:117]
    first, second = method(iter([one, two, two]))
    assert first.shape == (80, 100, 2) and first.dtype == np.float32
    np.testing.assert_allclose(np.median(first, axis=(0, 1)), (3, 2), atol=0.2)
    np.testing.assert_allclose(second, 0, atol=0.1)


@pytest.mark.parametrize("height", [32, 96])
def test_the_flow_of_a_pair_is_the_same_wherever_the_video_begins(height):
    """OpenCV's DIS changes its own settings in its first call on small images."""
    big = texture(height + 20, height + 60)
    frames = [big[2 * k : 2 * k + height, 3 * k : 3 * k + height + 20] for k in range(5)]
    whole = list(dis_flow(iter(frames)))
    for start in (1, 2, 3):
        np.testing.assert_array_equal(list(dis_flow(iter(frames[start:]))), whole[start:])


@pytest.mark.parametrize(("width", "height"), [(8, 12), (12, 8), (39, 8), (40, 16), (79, 16), (80, 32)])
def test_films_too_small_for_dis_are_one_reason(width, height):
    """OpenCV fails, or crashes, on these sizes less one pixel of height, and on any narrower than 8."""
    (flow,) = dis_flow([texture(height, width)] * 2)
    assert flow.shape == (height, width, 2)
    for wide, high in ((width, height - 1), (7, height)):
        with pytest.raises(VideoError, match=f"is {wide} x {high} pixels: DIS needs"):
            list(dis_flow([texture(high, wide)] * 2))


def test_raft_points_from_each_frame_to_the_next(shared):
    """The same for RAFT, on sides that are no multiples of 8, whatever the batch."""
    big = texture(150, 160)
    frames = [big[20 - 2 * k : 143 - 2 * k, 20 - 3 * k : 149 - 3 * k] for k in range(3)]
    flows, alone = (np.stack(list(raft_flow(iter(frames), raft_small(shared), batch_frames=n))) for n in (2, 1))
    assert flows.shape == (2, 123, 129, 2) and flows.dtype == np.float32
    np.testing.assert_allclose(np.median(flows, axis=(1, 2)), [(3, 2)] * 2, atol=0.3)
    np.testing.assert_allclose(flows, alone, atol=0.02)


def test_methods_hold_few_frames():
    """No method asks for more frames than it needs, so that a video of any length fits in memory."""
    batched = functools.partial(tvl1_flow, backend="torch", batch_frames=3)
    for method, ahead in ((dis_flow, 2), (tvl1_flow, 2), (batched, 4)):
        taken = itertools.count()
        frame = texture(48, 48)
        frames = (frame for _ in taken)
        next(iter(method(frames)))
        assert next(taken) <= ahead


@pytest.mark.parametrize(
    ("method", "expected"), [("tvl1", (3.24, 0.71, 2.90)), ("dis", (3.25, 0.74, 3.51)), ("raft", (1.14, 0.58, 1.50))]
)
def test_endpoint_error_against_ground_truth(method, expected, shared):
    """Mean endpoint error in px on real pairs; the figures are those that OpenCV and torchvision gave."""
    pairs = shared / "data" / "flow_pairs"
    methods = {"tvl1": tvl1_flow, "dis": dis_flow, "raft": lambda frames: raft_flow(frames, raft_small(shared))}
    for number in (1, 2, 3) if method == "dis" else (2,):
        frames = [np.asarray(Image.open(pairs / f"{number:05d}_img{k}.ppm")) for k in (1, 2)]
        truth = np.frombuffer((pairs / f"{number:05d}_flow.flo").read_bytes(), "<f4", offset=12).reshape(384, 512, 2)
        (flow,) = methods[method](frames)
        found, error = np.linalg.norm(flow - truth, axis=2).mean(), expected[number - 1]
        assert abs(found - error) < 0.02 + 0.03 * error, f"pair {number}: {found:.3f} px"


# --- the script ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    """A video of 8 frames: a texture that stands still but for 4 px to the left from frame 5 to frame 6."""
    root = tmp_path_factory.mktemp("moving")
    writer = cv2.VideoWriter(str(root / "v_Biking_g01_c01.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 25, (160, 128))
    big = texture(128, 180)
    for k in range(8):
        left = 4 if k >= 5 else 0
        writer.write(np.ascontiguousarray(big[:, left : left + 160, ::-1]))
    writer.release()
    return root


def test_tvl1_is_opencvs_and_image_k_is_the_flow_from_frame_k_to_the_next(moving, tmp_path):
    """Bytes are those of OpenCV's flow, quantised and coded. A run goes on, and has nothing left to do."""
    simplejpeg = pytest.importorskip("simplejpeg")
    if not hasattr(cv2, "optflow") or best_backend() != "numba":
        pytest.skip("needs OpenCV's optflow and numba")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in read_frames(moving / "v_Biking_g01_c01.avi")]
    expected = {}
    for number, (one, two) in enumerate(itertools.pairwise(grey), start=1):
        images = quantise(cv2.optflow.createOptFlow_DualTVL1().calc(one, two, None), 20)
        for axis, name in enumerate("uv"):
            median = 128 - 4 * 6.375 if (number, name) == (5, "u") else 128
            assert abs(float(np.median(images[:, :, axis])) - median) <= 2
            image = np.ascontiguousarray(images[:, :, axis, None])
            path = f"{name}/v_Biking_g01_c01/frame{number:06d}.jpg"
            expected[path] = simplejpeg.encode_jpeg(image, 90, "GRAY", "Gray")
    out = tmp_path / "out"
    command = ("flow", moving, out, "--device", "cpu", "--short-side", "0")
    assert "tvl1: numba, on cpu; --method dis is" in extract(*command)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("frame*.jpg"))}
    assert found.keys() == expected.keys()
    if platform.system() == "Linux" and platform.machine() == "x86_64":  # elsewhere compilers may round otherwise
        assert found == expected
    settings = {"method": "tvl1", "bound": 20.0, "short_side": 0, "quality": 90}
    assert json.loads((out / "extraction.json").read_text()) == {"kind": "flow", "version": 1, "settings": settings}
    assert "nothing left to do" in extract(*command)


def test_tensor_codes_flow_is_not_mixed_with_opencvs(moving, monkeypatch, tmp_path):
    """Where numba does not work the tensor code does it, and says so in extraction.json."""
    out, has_numba = tmp_path / "out", best_backend() == "numba"
    command = ("flow", moving, out, "--device", "cpu", "--short-side", "32")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "data.tvl1.cpu", None)
        best_backend.cache_clear()
        done = extract(*command)
        best_backend.cache_clear()
    assert "tvl1: torch, " in done and "pip install numba" in done
    image = np.asarray(Image.open(out / "u" / "v_Biking_g01_c01" / "frame000005.jpg"))
    assert abs(float(np.median(image)) - (128 - 6.375)) <= 2  # 4 px at a quarter of the size
    if has_numba:
        assert "backend torch there, none asked" in extract(*command, code=2)


def test_settings_may_change_after_a_kill_before_the_first_video(moving, tmp_path):
    """What a run leaves that is killed then: its settings, a lock that nobody holds, half a video."""
    out = tmp_path / "out"
    (out / ".partial/dead/x/u").mkdir(parents=True)
    (out / ".partial/dead.lock").touch()
    claim = {"kind": "flow", "version": 1, "settings": {"method": "tvl1", "bound": 20.0, "short_side": 256}}
    (out / "extraction.json").write_text(json.dumps(claim))
    command = ("flow", moving, out, "--method", "dis")
    extract(*command, "--bound", "16")
    assert json.loads((out / "extraction.json").read_text())["settings"]["bound"] == 16
    assert not (out / ".partial").exists()
    assert "bound 16.0 there, 20.0 asked" in extract(*command, code=2)


@pytest.mark.gpu
def test_tvl1_on_a_gpu(moving, run, tmp_path):
    out = tmp_path / "out"
    command = ("data/extract_flow.py", moving, out, "--device", "cuda", "--short-side", "0", "--workers", "2")
    assert "on cuda:0" in run(*command).stdout
    image = np.asarray(Image.open(out / "u" / "v_Biking_g01_c01" / "frame000005.jpg"))
    assert abs(float(np.median(image)) - (128 - 4 * 6.375)) <= 2
    assert json.loads((out / "extraction.json").read_text())["settings"]["device"] == "cuda"


def test_gpus_are_taken_where_they_help(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def devices(method: str, device: str = "auto") -> list[str]:
        return extract_flow.find_devices(argparse.Namespace(method=method, device=device))

    assert devices("tvl1") == devices("raft") == devices("tvl1", "cuda") == ["cuda:0", "cuda:1"]
    assert devices("dis") == devices("tvl1", "cpu") == devices("raft", "cpu") == ["cpu"]


def test_raft_weights_are_named_in_the_settings_and_those_that_cannot_be_had_are_one_line(
    shared, moving, monkeypatch, tmp_path
):
    args = argparse.Namespace(method="raft", weights=str(raft_small(shared)), batch_frames=8)
    _, settings = extract_flow.choose_methods(args, ["cpu"])
    digest = hashlib.sha256(raft_small(shared).read_bytes()).hexdigest()
    assert settings == {"model": "raft_small", "weights": digest[:16]}
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"text\.pth holds no RAFT weights"):
        load_raft(tmp_path / "text.pth")
    with pytest.raises(InputError, match=r"missing\.pth holds no RAFT .* No such file"):
        load_raft(tmp_path / "missing.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    error = extract("flow", moving, tmp_path / "out", "--method", "raft", "--weights", "small", code=2)
    assert "cannot download RAFT weights" in error
    assert "--weights PATH" in error
