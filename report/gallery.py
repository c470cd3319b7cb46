"""Pictures of videos for the report: of the mistakes, and of look-alike pairs."""

import base64
import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageOps
from scipy.special import softmax

from data.flow import dis_flow, quantise
from data.videos import VideoError, count_frames, decode, scaled
from dataloader.extracted import read_marker
from dataloader.frames import Index, Kind, ReadFlow, ReadFrame, find
from dataloader.layouts import index_frames
from report.outcome import Outcome
from saved.predictions import Predictions
from utils import InputError, plural

BEST = 3  # guesses shown per stream, besides the true class
HEIGHT, FRAMES = 80, 4  # pixels and frames of a strip, which takes about 8 kB
PAIR_SIDE, BOUND = 160, 20.0  # pixels: the shorter side of frames that flow is computed of, and white or black flow
DARK = 40  # mean grey level below which frames are brightened
MOST = 600  # at most this many videos have pictures; the page is then about 10 MB


@dataclass(frozen=True)
class Seen:
    """What can be shown of a video: pictures as data URIs, and its file's path. None where it is unknown."""

    frames: str | None = None
    flow: str | None = None
    path: str | None = None
    brightened: bool = False  # the frames


def mistakes(outcome: Outcome) -> dict[str, list[tuple[str, Seen, dict]]]:
    """Return the mistakes by kind ("true class → guess: 3 videos"): the most frequent and confident ones first.

    A mistake is a video, what can be shown of it, and {row: [(class, probability, is it right)]}.
    """
    test_set = outcome.test_set
    names, labels, videos = test_set.class_names, test_set.labels, test_set.videos
    chances = {name: softmax(logits, axis=1) for name, logits in outcome.rows.items()}
    sure, guesses = chances[outcome.main].max(axis=1), outcome.fused.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    shown = look_up(test_set.sources, [videos[row] for row in wrong[:MOST]])

    def best(values: np.ndarray, own: int) -> list[tuple[str, float, bool]]:
        """Return the first guess, other guesses of at least half a per cent, and always the true class."""
        first, *others = np.argsort(-values, kind="stable")[:BEST].tolist()
        taken = [first, *(guess for guess in others if values[guess] >= 0.005), own]
        return [(names[guess], values[guess], guess == own) for guess in dict.fromkeys(taken)]

    kinds: defaultdict[tuple[int, int], list] = defaultdict(list)
    for row in wrong.tolist():
        label = int(labels[row])
        guessed = {name: best(values[row], label) for name, values in chances.items()}
        kinds[label, int(guesses[row])].append((videos[row], shown.get(videos[row], Seen()), guessed))
    return {
        f"{names[label]} → {names[guess]}: {plural(len(found), 'video')}": found
        for (label, guess), found in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def look_up(sources: Mapping[str, Predictions], videos: Sequence[str]) -> dict[str, Seen]:
    """Return what can be shown of each video. predictions.json says where the images are."""
    rgb, flow = find_index(sources, "rgb", videos), find_index(sources, "flow", videos)
    # the videos of predict.py and recogniser/video_features.py are not extracted: they record their files
    files = {video: path for one in sources.values() for video, path in (one.meta.get("files") or {}).items()}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda video: see(video, rgb, flow, files.get(video)), videos)
        return dict(zip(videos, found, strict=True))


def find_index(sources: Mapping[str, Predictions], kind: Kind, videos: Sequence[str]) -> Index | None:
    """Return the index of these videos' images, of the kind that a stream was evaluated on; None without images."""
    for source in sources.values():
        frames = source.meta.get("frames") or {}
        known = [frames["folders"].get(video, "") for video in videos] if frames else []
        # Flow of rgb/X may be in u/X and v/X; that of dis/u/X is in dis/v/X, too.
        places = [place for folder in known if folder
                  for place in (folder, f"u/{folder}", f"v/{folder}", f"/{folder}".replace("/u/", "/v/")[1:])]
        for root in filter(None, [frames.get("root"), *frames.get("more", [])]):
            with contextlib.suppress(InputError, OSError, ValueError):
                return index_frames(root, kind, places)
    return None


def see(video: str, rgb: Index | None, flow: Index | None, path: str | None) -> Seen:
    """Return pictures of one video. A missing or damaged image only loses its picture."""
    frames, motion, dark = None, None, False
    images: list[np.ndarray] = []
    middle: list[np.ndarray] = []
    lost = contextlib.suppress(InputError, VideoError, OSError, ValueError, Image.DecompressionBombError)
    with lost:
        if path is not None and (rgb is None or flow is None):
            images, middle = cut_out(Path(path))
    with lost:
        if rgb is not None:
            found: Any = find(rgb, video)
            made = read_marker(rgb.root, found.folder)
            path = path or (made.path if made else None)
            images = [image.transpose(1, 2, 0) for image in ReadFrame(rgb.root)(found, evenly(found.count))]
        if images:
            dark = float(np.mean([image.mean() for image in images])) < DARK
            if dark:  # the darkest and the brightest per cent of the grey levels are cut
                pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
                images = [np.asarray(ImageOps.autocontrast(picture, cutoff=1)) for picture in pictures]
            frames = data_uri(images)
    with lost:
        if flow is not None:
            pair: Any = find(flow, video)
            (xy,) = ReadFlow(flow.root)(pair, [pair[0].count // 2])
            motion = data_uri([flow_colours(xy)])
        for field in dis_flow(middle if motion is None else ()):
            motion = data_uri([flow_colours(quantise(field, BOUND).transpose(2, 0, 1))])
    return Seen(frames, motion, path, dark)


def evenly(count: int) -> list[int]:
    """Return the numbers of up to FRAMES of `count` images, spread evenly."""
    return np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int).tolist()


def cut_out(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the frames to show of a video file, and a pair of frames in its middle, scaled for a picture of flow."""
    count = count_frames(path)
    chosen, middle = evenly(count), (count // 2 - 1, count // 2)
    frames = enumerate(decode(path))
    pictures = {number: frame.picture() for number, frame in frames if number in (*chosen, *middle)}
    pair = [pictures[number] for number in middle if number in pictures]
    small = [scaled(one, PAIR_SIDE, pair[0].shape) for one in pair]
    return [pictures[number] for number in chosen if number in pictures], small


def flow_colours(xy: np.ndarray) -> np.ndarray:
    """Colour flow (2, height, width) uint8 as (height, width, 3): hue is direction, white is no motion."""
    x, y = xy.astype(np.float32) - 127.5
    speed = np.hypot(x, y)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = np.clip(speed / max(float(np.percentile(speed, 99.5)), 8), 0, 1)
    return (255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))).astype(np.uint8)


def data_uri(pictures: Sequence[np.ndarray]) -> str:
    """Return pictures (height, width, 3) uint8, scaled to HEIGHT and side by side, as a JPEG data URI."""
    height, width, _ = pictures[0].shape
    size = (min(max(round(width * HEIGHT / height), 1), 4 * HEIGHT), HEIGHT)
    images = [Image.fromarray(np.ascontiguousarray(one)).resize(size) for one in pictures]
    data = io.BytesIO()
    gap = ((0, 0), (0, 2), (0, 0))
    strip = np.hstack([np.pad(np.asarray(image), gap, constant_values=255) for image in images])
    Image.fromarray(strip).save(data, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
