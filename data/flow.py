"""Optical flow: methods that compute it from frames, quantisation to 8 bits.

A method turns a stream of RGB frames, uint8 (height, width, 3), into a stream of flows, float32 (height,
width, 2) in pixels, x then y, from each frame to the next: one fewer than frames. Few are held at a time.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.videos import VideoError, import_cv2
from utils import InputError, printable

BATCH_FRAMES = 16  # pairs of frames per batch of a network or GPU


@functools.cache
def best_backend(device: str = "cpu") -> str:
    """Return this machine's best TV-L1 code for a device ("cpu", "cuda:0"): "numba", "torch" or "compiled".

    On CPUs this is numba, which gives OpenCV's bytes, or the tensor code ("torch") if numba fails. On GPUs it
    is the tensor code, through torch.compile ("compiled") if that works. Both are tried on blank images:
    numba may be built for another numpy, and torch.compile may lack a compiler.
    """
    try:
        if device == "cpu":
            from data.tvl1.cpu import tvl1_pair

            blank = np.zeros((32, 32), np.uint8)
            tvl1_pair(blank, blank)
            return "numba"
        import torch

        from data.tvl1.tensor import tvl1_pairs

        images = torch.zeros(1, 32, 32, device=device)
        tvl1_pairs(images, images, compiled=True)
        return "compiled"
    except Exception:  # whatever failed, the plain tensor code works
        return "torch"


def tvl1_flow(
    frames: Iterable[np.ndarray], backend: str | None = None, device: str = "cpu", batch_frames: int = BATCH_FRAMES
) -> Iterator[np.ndarray]:
    """Duality-based TV-L1 (Zach, Pock and Bischof 2007) with OpenCV's default parameters.

    These are tau 0.25, lambda 0.15, theta 0.3, 5 scales of 0.8, 5 warps, epsilon 0.01, as for TSN's flow.
    `backend` is a result of best_backend; None selects the best. numba computes one pair at a time, the
    tensor code `batch_frames` pairs.
    """
    backend = backend or best_backend(device)
    if backend == "numba":
        from data.tvl1.cpu import tvl1_pair

        for one, two in itertools.pairwise(_grey(frames)):
            yield tvl1_pair(one, two).transpose(1, 2, 0)
        return
    from data.tvl1.tensor import tvl1_pairs

    for images in _batches(_grey(frames), batch_frames, device):
        flows = tvl1_pairs(images[:-1], images[1:], compiled=backend == "compiled")
        yield from flows.permute(0, 2, 3, 1).cpu().numpy()


def dis_flow(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Dense inverse search (Kroeger et al. 2016), computed by OpenCV with its default preset, FAST."""
    dis = import_cv2().DISOpticalFlow_create()
    for one, two in itertools.pairwise(_grey(frames)):
        height, width = one.shape
        lowest = (12, 8, 16, 32)[bisect.bisect((12, 40, 80), width)]  # found by trial; OpenCV crashes below
        if width < 8 or height < lowest:
            raise VideoError(f"is {width} x {height} pixels: DIS needs 8 in width, here {lowest} in height")
        finest = dis.getFinestScale()
        flow = dis.calc(one, two, None)
        # The first call on small images (no side over 90 pixels) changes the settings. Repeat it, so that all
        # pairs use the same settings.
        yield flow if dis.getFinestScale() == finest else dis.calc(one, two, None)


# Methods that need only frames and a CPU, under their names in --method and predict.py's --flow-method.
PLAIN_METHODS: dict[str, Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]] = {"dis": dis_flow}


def _grey(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    cv2 = import_cv2()
    return (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)


def raft_flow(
    frames: Iterable[np.ndarray], weights: Path, device: str = "cpu", batch_frames: int = BATCH_FRAMES
) -> Iterator[np.ndarray]:
    """RAFT (Teed and Deng 2020) with 12 updates, on `batch_frames` pairs of frames at once.

    `weights` is a file with a torchvision state_dict; its shapes tell raft_large from raft_small.
    Raises InputError if the weights don't fit the network.
    """
    import torch

    _, model = load_raft(weights, device)
    for batch in _batches(frames, batch_frames, device):
        images = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
        height, width = images.shape[-2:]
        # RAFT correlates at an eighth of the size on four levels: sides must be multiples of 8, at least 128.
        right, below = max(128, -(-width // 8) * 8) - width, max(128, -(-height // 8) * 8) - height
        images = torch.nn.functional.pad(images, (0, right, 0, below), mode="replicate")
        with torch.inference_mode():
            flows = model(images[:-1], images[1:])[-1]
        yield from flows[:, :, :height, :width].permute(0, 2, 3, 1).cpu().numpy()


def _batches(frames: Iterable[np.ndarray], pairs: int, device: str) -> Iterator[Any]:
    """Yield tensors of `pairs` + 1 frames (fewer at the end) that overlap by one frame."""
    import torch

    frames = iter(frames)
    batch = list(itertools.islice(frames, pairs + 1))
    while len(batch) > 1:
        yield torch.from_numpy(np.stack(batch)).to(device)
        batch = [batch[-1], *itertools.islice(frames, pairs)]


@functools.lru_cache(maxsize=1)  # a process uses one model for many videos
def load_raft(weights: Path, device: str = "cpu") -> tuple[str, Any]:
    """Return ("raft_small" or "raft_large", the network) from a file with torchvision's RAFT weights."""
    import torch
    from torchvision.models import optical_flow

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        feature_channels = len(state["feature_encoder.conv.weight"])
        name = "raft_small" if feature_channels == 128 else "raft_large"
        model = getattr(optical_flow, name)(weights=None)
        model.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{weights} holds no RAFT weights of torchvision's; give such a file, `large` or `small` "
                         f"({printable(str(error))[:200]})") from error  # fmt: skip
    torch.backends.cudnn.deterministic = True  # so that a video always gives the same bytes
    torch.backends.cudnn.allow_tf32 = False
    return name, model.float().eval().to(device)


def raft_weights(name: str) -> Path:
    """Path of RAFT weights: torchvision's "large" or "small", downloaded once to torch's cache, or a file."""
    import torch
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    if name not in ("large", "small"):
        return Path(name)
    weights = (Raft_Large_Weights if name == "large" else Raft_Small_Weights).DEFAULT
    try:
        weights.get_state_dict(check_hash=True)
    except Exception as error:  # torch raises many kinds, also for a broken file in its cache
        raise InputError(f"cannot download RAFT weights from {weights.url} ({error}); fetch them elsewhere and give "
                         "--weights PATH") from error  # fmt: skip
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])


def quantise(flow: np.ndarray, bound: float) -> np.ndarray:
    """Quantise flow in pixels to uint8, clipped: -bound -> 0, 0 -> 128 (127.5 rounded up), bound -> 255.

    Raises VideoError if the flow is not finite.
    """
    if not np.isfinite(flow).all():
        raise VideoError("its flow is not finite")
    return np.floor(np.clip(flow, -bound, bound) * (255 / (2 * bound)) + 128).astype(np.uint8)
