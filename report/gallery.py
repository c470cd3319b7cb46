"""Pictures of videos for the report: of the mistakes, and of look-alike pairs."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageOps

from dataloader.extracted import source_path
from dataloader.frames import Index, ReadFlow, ReadFrame, find, index_frames
from report.outcome import Outcome
from report.page import Card, Cards, Picture
from saved.predictions import Predictions
from utils import InputError, plural

BEST = 3  # guesses shown per stream, besides the true class
HEIGHT, FRAMES = 80, 4  # pixels and frames of a strip, which takes about 8 kB
MOST = 600  # at most this many videos have pictures; the page is then about 10 MB
DARK = 40  # mean grey level below which frames are brightened


def anchor(label: int, guess: int) -> str:
    """Return the HTML anchor of the videos of class `label` that were classified as `guess`."""
    return f"c{label}-{guess}"


def mistakes(outcome: Outcome, chances: Mapping[str, np.ndarray]) -> tuple[list[Cards], int]:
    """Return the mistakes by kind, and how many of them lack frames.

    The most frequent kind comes first; within a kind, the most confident mistake.
    chances: probabilities (videos, classes) of each stream and of fusion.
    """
    test_set = outcome.test_set
    names, labels, videos = test_set.class_names, test_set.labels, test_set.videos
    guesses, sure = outcome.fused.argmax(axis=1), chances[outcome.main].max(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    shown = pictures(test_set.sources, [videos[row] for row in wrong[:MOST]])

    def best(values: np.ndarray, own: int) -> list[tuple[str, float, bool]]:
        """Return the first guess, other guesses of at least half a per cent, and always the true class."""
        first, *others = np.argsort(-values, kind="stable")[:BEST].tolist()
        taken = [first, *(guess for guess in others if values[guess] >= 0.005), own]
        return [(names[guess], values[guess], guess == own) for guess in dict.fromkeys(taken)]

    kinds: dict[tuple[int, int], list[Card]] = {}
    for row in wrong.tolist():
        seen, label = shown.get(videos[row], Seen()), int(labels[row])
        guessed = {name: best(values[row], label) for name, values in chances.items()}
        card = Card(f"v{row}", videos[row], seen.pictures, seen.paths, guessed)
        kinds.setdefault((label, int(guesses[row])), []).append(card)
    found = [
        Cards(cards, f"{names[label]} → {names[guess]}: {plural(len(cards), 'video')}", anchor(label, guess))
        for (label, guess), cards in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return found, len(wrong) - sum(one.frames for one in shown.values())


def pairs(outcome: Outcome, alike: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Return a card for each pair of look_alikes in results.json, with pictures of both videos."""
    shown = pictures(
        outcome.test_set.sources, [pair[part] for pair in alike for part in ("test", "training")]
    )
    cards = []
    for number, pair in enumerate(alike):
        both = [(part, pair[part], shown[pair[part]]) for part in ("test", "training")]
        strips = [
            Picture(one.source, one.alt, f"{part}: {name}")
            for part, name, seen in both for one in seen.pictures[: int(seen.frames)]
        ]  # fmt: skip
        title = (
            " and ".join(name for _, name, _ in both)
            if not strips
            else f"similarity {pair['similarity']:.2f}"
        )
        cards.append(Card(f"pair{number}", title, strips, [path for *_, seen in both for path in seen.paths]))
    return cards


# --- pictures ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What can be shown of a video: pictures (the first shows frames if `frames`) and its file's path."""

    pictures: Sequence[Picture] = ()
    frames: bool = False
    paths: Sequence[str] = ()


def pictures(sources: Mapping[str, Predictions], videos: Sequence[str]) -> dict[str, Seen]:
    """Return what can be shown of each video. predictions.json says where the images are.

    A missing or damaged image loses its picture only; the report is still written.
    """
    rgb, flow = find_index(sources, "rgb"), find_index(sources, "flow")
    files = {video: path for one in sources.values() for video, path in (one.meta.get("files") or {}).items()}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda video: see(video, rgb, flow, files.get(video)), videos)
        return dict(zip(videos, found, strict=True))


def find_index(sources: Mapping[str, Predictions], kind: Literal["rgb", "flow"]) -> Index | None:
    """Return the index of the images of one kind that a stream was evaluated on, None if there are none."""
    for source in sources.values():
        frames = source.meta.get("frames") or {}
        for root in filter(None, [frames.get("root"), *frames.get("more", [])]):
            try:
                return index_frames(root, kind)
            except (InputError, OSError, ValueError):
                continue
    return None


def see(video: str, rgb: Index | None, flow: Index | None, path: str | None) -> Seen:
    """Return pictures of one video. `path` is its file, if known (predict.py's videos are not extracted)."""
    shown: list[Picture] = []
    frames = False
    lost = contextlib.suppress(InputError, OSError, ValueError, Image.DecompressionBombError)
    with lost:
        if rgb is not None:
            found: Any = find(rgb, video)
            path = path or source_path(rgb.root, found.folder)
            chosen = np.linspace(0, found.count - 1, min(FRAMES, found.count)).round().astype(int).tolist()
            images = [small(image.transpose(1, 2, 0)) for image in ReadFrame(rgb.root)(found, chosen)]
            dark = float(np.mean([np.mean(np.asarray(image)) for image in images])) < DARK
            if dark:
                images = [ImageOps.autocontrast(image, cutoff=1) for image in images]
            shown.append(Picture(data_uri(images), f"frames of {video}", "frames brightened" if dark else ""))
            frames = True
    with lost:
        if flow is not None:
            pair: Any = find(flow, video)
            (xy,) = ReadFlow(flow.root)(pair, [pair[0].count // 2])
            shown.append(Picture(data_uri([small(flow_colours(xy))]), f"optical flow of {video}"))
    return Seen(shown, frames, [path] if path else [])


def small(pixels: np.ndarray) -> Image.Image:
    """Return (height, width, 3) uint8 pixels as a picture that is HEIGHT pixels high."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = min(max(round(image.width * HEIGHT / image.height), 1), 4 * HEIGHT)
    return image.resize((width, HEIGHT), Image.Resampling.BILINEAR)


def flow_colours(xy: np.ndarray) -> np.ndarray:
    """Colour flow (2, height, width) uint8 as (height, width, 3): hue is direction, white is no motion."""
    x, y = xy.astype(np.float32) - 127.5
    speed = np.hypot(x, y)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = np.clip(speed / max(float(np.percentile(speed, 99.5)), 8), 0, 1)
    return (255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))).astype(np.uint8)


def data_uri(images: list[Image.Image]) -> str:
    """Join images of one height side by side, and return them as a JPEG data URI."""
    joined = Image.new(
        "RGB", (sum(image.width for image in images) + 2 * (len(images) - 1), HEIGHT), "#808890"
    )
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + 2
    data = io.BytesIO()
    joined.save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
