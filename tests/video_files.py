"""Small videos of something that moves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

FRAMES, RATE = 26, 25


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
