"""The videos of each class for the report: the mistakes with pictures and guesses, the others by name."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageOps

from dataloader.extracted import source_path
from dataloader.frames import Index, find, index_frames
from dataloader.images import ReadFlow, ReadFrame
from report.outcome import Outcome
from report.page import Gallery, Mistakes, Video
from saved.predictions import Predictions
from utils import InputError

BEST = 3  # guesses shown of each stream, beside the true class
HEIGHT, FRAMES = 80, 4  # of a strip: about 8 kB
MOST = 600  # videos with pictures on one page, which they make some 10 MB large
DARK = 40  # mean grey level below which frames are brightened


def anchor(label: int, guess: int | None = None) -> str:
    """The anchor of a class, or of its videos that fusion takes for the class `guess`."""
    return f"c{label}" if guess is None else f"c{label}-{guess}"


def build(outcome: Outcome, chances: dict[str, np.ndarray]) -> tuple[Gallery, int]:
    """The gallery, classes with the most mistakes first, and how many mistakes lack frames.

    chances: stream and fusion -> (videos, classes) probabilities.
    """
    test_set = outcome.test_set
    names, labels = test_set.class_names, test_set.labels
    guesses = outcome.fused.argmax(axis=1)
    sure = chances["fusion"].max(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    shown = pictures(test_set.sources, [test_set.videos[row] for row in wrong])

    def video(row: int) -> Video:
        best = {name: guesses_of(values[row], labels[row]) for name, values in chances.items()}
        name = test_set.videos[row]
        return Video(f"v{row}", name, best, **shown.get(name, NOTHING))

    def guesses_of(values: np.ndarray, own: int) -> list[tuple[str, float]]:
        """The best guesses, those of less than half a per cent left out, and the true class, however small."""
        first, *others = np.argsort(-values, kind="stable")[:BEST].tolist()
        shown = [first, *(guess for guess in others if values[guess] >= 0.005 or guess == own)]
        return [(names[guess], values[guess]) for guess in dict.fromkeys([*shown, int(own)])]

    def remark(row: int) -> str:
        """Which streams are wrong where fusion is right."""
        others = {name: logits[row].argmax() for name, logits in test_set.streams.items()}
        return ", ".join(f"{name}: {names[guess]}" for name, guess in others.items() if guess != labels[row])

    classes = []
    for label in np.unique(labels):
        mine = wrong[labels[wrong] == label]
        kinds, counts = np.unique(guesses[mine], return_counts=True)
        right = np.flatnonzero((labels == label) & (guesses == label))
        classes.append(
            Mistakes(
                anchor=anchor(label),
                name=names[label],
                videos=len(mine) + len(right),
                wrong=[
                    (anchor(label, guess), names[guess], [video(row) for row in mine if guesses[row] == guess])
                    for guess in kinds[np.argsort(-counts, kind="stable")]
                ],
                right=[(test_set.videos[row], remark(row)) for row in right.tolist()],
                right_anchor=anchor(label, label),
            )
        )
    classes.sort(key=lambda one: len(one.right) - one.videos)
    return Gallery(classes), len(wrong) - sum(bool(one["frames"]) for one in shown.values())


# --- pictures ------------------------------------------------------------------------------------------

NOTHING: dict[str, Any] = {"frames": None, "flow": None, "path": None, "brightened": False}


def pictures(sources: Mapping[str, Predictions], videos: list[str]) -> dict[str, dict[str, Any]]:
    """Pictures of the first MOST of `videos`, by video: the page's `Video` fields frames, flow, path and brightened.

    predictions.json says where images lie. What is missing or damaged costs its picture, not the report.
    """
    rgb, flow = find_index(sources, "rgb"), find_index(sources, "flow")
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda video: one_video(video, rgb, flow), videos[:MOST])
        found = dict(zip(videos[:MOST], made, strict=True))
    for source in sources.values():
        files = source.meta.get("files") or {}  # predict.py's, which extracts no images
        for video in files.keys() & found.keys():
            found[video]["path"] = files[video]
    return found


def find_index(sources: Mapping[str, Predictions], kind: Literal["rgb", "flow"]) -> Index | None:
    """The images of a kind that one of the streams was tested on."""
    for source in sources.values():
        frames = source.meta.get("frames")
        root = frames.get("root") if isinstance(frames, dict) else None
        if isinstance(root, str):
            try:
                return index_frames(root, kind)
            except (InputError, OSError, ValueError):
                continue
    return None


def one_video(video: str, rgb: Index | None, flow: Index | None) -> dict[str, Any]:
    found = dict(NOTHING)
    try:
        if rgb is not None:
            frames: Any = find(rgb, video)
            chosen = np.linspace(0, frames.count - 1, min(FRAMES, frames.count)).round().astype(int).tolist()
            images = [small(image.transpose(1, 2, 0)) for image in ReadFrame(rgb.root)(frames, chosen)]
            found["brightened"] = float(np.mean([np.mean(np.asarray(image)) for image in images])) < DARK
            if found["brightened"]:
                images = [ImageOps.autocontrast(image, cutoff=1) for image in images]
            found["frames"] = data_uri(images)
            found["path"] = source_path(rgb.root, frames.folder)
        if flow is not None:
            pair: Any = find(flow, video)
            (xy,) = ReadFlow(flow.root)(pair, [pair[0].count // 2])
            found["flow"] = data_uri([small(flow_colours(xy))])
    except (InputError, OSError, ValueError, Image.DecompressionBombError):
        pass
    return found


def small(pixels: np.ndarray) -> Image.Image:
    """A picture HEIGHT pixels high of (height, width, 3) uint8."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = min(max(round(image.width * HEIGHT / image.height), 1), 4 * HEIGHT)
    return image.resize((width, HEIGHT), Image.Resampling.BILINEAR)


def flow_colours(xy: np.ndarray) -> np.ndarray:
    """Flow images (2, height, width) uint8 as colours (height, width, 3): hue is direction, white is no motion."""
    x, y = xy.astype(np.float32) - 127.5
    speed = np.hypot(x, y)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = np.clip(speed / max(float(np.percentile(speed, 99.5)), 8), 0, 1)
    return (255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))).astype(np.uint8)


def data_uri(images: list[Image.Image]) -> str:
    """Images of one height side by side, as a JPEG in a data URI."""
    joined = Image.new("RGB", (sum(image.width for image in images) + 2 * (len(images) - 1), HEIGHT), "#808890")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + 2
    data = io.BytesIO()
    joined.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
