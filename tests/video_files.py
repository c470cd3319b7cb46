"""Small videos: of something that moves, and films of every kind that PyAV can write. Extraction of them."""

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np

from data import extraction
from utils import InputError

FRAMES, RATE = 26, 25
BARS = 8  # a painted number's bits


def make_video(path: Path, seed: int, frames: int = FRAMES, size: tuple[int, int] = (128, 96)) -> Path:
    """A textured square that moves over a textured ground, as Motion JPEG."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
    square = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    step = rng.integers(1, 3, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, size)
    for number in range(frames):
        x, y = number * step % (np.array(size) - 24)
        image = ground.copy()
        image[y : y + 24, x : x + 24] = square
        writer.write(image)
    writer.release()
    return path


def paint(number: int, size: tuple[int, int] = (176, 144)) -> np.ndarray:
    """A frame that carries its number as bars, the lowest bit first; its upper left quarter is red."""
    width, height = size
    image = np.full((height, width, 3), 40, np.uint8)
    image[: height // 4, : width // 2] = (220, 30, 30)
    for bit in range(BARS):
        if number >> bit & 1:
            image[height // 2 :, bit * width // BARS : (bit + 1) * width // BARS] = 220
    return image


def number_of(frame: np.ndarray) -> int:
    """The number that is painted into an upright frame; -1 where its upper left quarter isn't red."""
    height, width = frame.shape[:2]
    red, green, _ = frame[: height // 6, : width // 3].mean((0, 1))
    bars = [frame[height * 3 // 4, (2 * bit + 1) * width // (2 * BARS)].mean() > 130 for bit in range(BARS)]
    return sum(1 << bit for bit, is_set in enumerate(bars) if is_set) if red - green > 80 else -1


def write_film(
    path: Path, codec: str = "mpeg4", frames: int = 12, stamps: Sequence[float] = (), form: str | None = None,
    pixels: str = "yuv420p", size: tuple[int, int] = (176, 144), options: dict[str, str] | None = None,
    container: dict[str, str] | None = None, matrix: Sequence[int] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """A film of painted frames, at 25 per second or at `stamps` in seconds, of which the last is the end.

    `matrix` is what the container says of turning; `settings` are set on the stream's codec.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=form, options=container or {}) as output:
        stream = output.add_stream(codec, RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, pixels, 400_000
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if stamps:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if matrix:
            stream.set_display_matrix(matrix)
        for number in range(len(stamps) - 1 if stamps else frames):
            frame = av.VideoFrame.from_ndarray(paint(number, size), format="rgb24")
            if stamps:
                frame.pts, frame.time_base = round(1000 * stamps[number]), Fraction(1, 1000)
                frame.duration = round(1000 * stamps[number + 1]) - frame.pts
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def one_by_one(workers: Sequence, jobs: Sequence):
    """What run_jobs does, in this process."""
    return ((place, workers[0](job)) for place, job in enumerate(jobs))


def extract(kind: str, *arguments: object, code: int = 0) -> str:
    """Run data/extract_<kind>.py in this process, to spare the start of others, and return what it prints."""
    said, argv = io.StringIO(), ["extract", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), mock.patch.object(extraction, "run_jobs", one_by_one):  # noqa: SIM117
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                found = importlib.import_module(f"data.extract_{kind}").main()
            except InputError as error:
                found = 2
                print(error)
    assert found == code, said.getvalue()
    return said.getvalue()
