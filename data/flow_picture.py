"""A picture of extracted flow to look at: frames, flow in colours, one stack as the network sees it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.flow import dequantise
from data.videos import read_frames
from utils import InputError, atomic_path

STACK = 10  # flow pairs in one input of the motion stream


def draw_flow(target: Path, folders: Sequence[Path], video: Path, short_side: int, bound: float, title: str) -> None:
    """Write a PNG of the liveliest stack of one video's extracted flow.

    `folders` are its u and v folders; `video` is the file that they were made from, or a folder of .flo files,
    which has no frames to show. Raises InputError when matplotlib is missing or nothing was extracted.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"--visualize needs matplotlib ({error}); pip install matplotlib") from error
    speeds, clipped = _survey(folders)
    start = _liveliest(speeds)
    stack = range(start, min(start + STACK, len(speeds)))
    u, v = (np.stack([_read_image(folder, index) for index in stack]) for folder in folders)
    flow = np.stack([dequantise(u, bound), dequantise(v, bound)], axis=-1)
    # The liveliest, not every second one: many videos hold each frame twice, and every second flow is zero.
    shown = sorted(sorted(stack, key=lambda index: -speeds[index])[:5])
    top = float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 99.5)) or 1.0
    pictures, wheel = _colours(flow[[index - start for index in shown]], top)
    frames = {}
    if video.is_file():
        decoded = itertools.islice(read_frames(video, short_side), stack.stop)
        frames = {index: frame for index, frame in enumerate(decoded) if index in shown}

    aspect = u.shape[1] / u.shape[2]
    heights = [2.8 * aspect + 0.35] * (2 if frames else 1) + [2 * (1.6 * aspect + 0.3) + 0.4]  # inches
    figure = Figure(figsize=(16, sum(heights) + 0.7), layout="constrained")
    figure.suptitle(
        f"{title}\nflow {start + 1} to {stack.stop} of {len(speeds)}; mean speed {bound * speeds.mean():.2f} px, "
        f"{100 * clipped:.2f} % of the vectors at the bound of {bound:g} px"
    )
    *upper, lower = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, part in enumerate(upper):
        axes = part.subplots(1, 6, width_ratios=[3, 3, 3, 3, 3, 1.6])
        for axis in axes:
            axis.set_axis_off()
        for axis, index, picture in zip(axes, shown, pictures, strict=False):
            is_frame = bool(frames) and row == 0
            axis.imshow(frames[index] if is_frame else picture)
            axis.set_title(f"frame {index + 1}" if is_frame else f"flow {index + 1} \N{RIGHTWARDS ARROW} {index + 2}")
        if row == len(upper) - 1:
            axes[-1].imshow(wheel)
            axes[-1].set_title(f"rim: {top:.1f} px")
    axes = lower.subplots(2, STACK, squeeze=False)
    for column, name, images in zip(axes, ("x", "y"), (u, v), strict=True):
        for place, axis in enumerate(column):
            axis.set_axis_off()
            if place < len(stack):
                axis.imshow(images[place], cmap="gray", vmin=0, vmax=255)
                axis.set_title(f"{name}{place + 1}")
    lower.suptitle("the stack as the network sees it: grey is no motion, bright is right (x) and down (y)")
    with atomic_path(target) as path:
        figure.savefig(path, format="png", dpi=90)


def _read_image(folder: Path, index: int) -> np.ndarray:
    """Image `index`, from 0, of a folder: uint8 (height, width)."""
    import simplejpeg

    return simplejpeg.decode_jpeg((folder / f"frame{index + 1:06d}.jpg").read_bytes(), "GRAY")[:, :, 0]


def _survey(folders: Sequence[Path]) -> tuple[np.ndarray, float]:
    """Each flow's mean speed in units of the bound, and which share of all vectors touches the bound."""
    count = sum(1 for _ in folders[0].glob("frame*.jpg"))
    speeds, clipped = np.zeros(count), np.zeros(count)
    for index in range(count):
        u, v = (_read_image(folder, index) for folder in folders)
        speeds[index] = np.hypot(dequantise(u, 1.0), dequantise(v, 1.0)).mean()
        clipped[index] = np.mean((np.minimum(u, v) == 0) | (np.maximum(u, v) == 255))
    return speeds, float(clipped.mean())


def _liveliest(speeds: np.ndarray) -> int:
    """Where the run of STACK flows with the highest mean speed begins."""
    if len(speeds) <= STACK:
        return 0
    return int(np.argmax(np.convolve(speeds, np.ones(STACK), "valid")))


def _colours(flow: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """The usual colour wheel (Baker et al. 2011): hue is direction, full colour is `top` pixels or more.

    Takes (n, height, width, 2), returns uint8 (n, height, width, 3) and the wheel itself as a legend.
    """
    import torch
    from torchvision.utils import flow_to_image

    def colour(flow: np.ndarray) -> np.ndarray:
        norm = np.hypot(flow[..., :1], flow[..., 1:])
        flow = flow / np.maximum(norm, top)
        flow[..., 0, 0, :] = (1, 0)  # flow_to_image scales by the longest vector: one of exactly `top` in each
        return flow_to_image(torch.from_numpy(flow).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()

    across = np.linspace(-top, top, 151, dtype=np.float32)
    disc = np.stack(np.meshgrid(across, across), axis=-1)[None]
    wheel = colour(disc)[0]
    wheel[np.hypot(disc[0, ..., 0], disc[0, ..., 1]) > top] = 255
    return colour(flow), wheel
