"""Writing films by PyAV: H.264, which browsers play, where its FFmpeg has it; else MPEG-4."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from utils import InputError, atomic_path, check_writable

Write = Callable[[np.ndarray], None]  # adds a picture, RGB uint8 (height, width, 3), all of one size with even sides


@contextlib.contextmanager
def open_film(target: Path, rate: float) -> Iterator[Write]:
    """Give a function that adds a picture to a film of `rate` pictures a second at `target`.

    The film appears when the block ends well. Raises InputError where the package av is missing.
    """
    try:
        import av
    except ImportError:
        raise InputError(f"--save {target} needs the package av: pip install av; or save a .png") from None
    check_writable(target.parent)
    options = {"movflags": "faststart"}
    with atomic_path(target) as temporary, av.open(str(temporary), "w", "mp4", options=options) as container:
        pace = Fraction(rate).limit_denominator(1001)
        if "libx264" in av.codecs_available:
            stream = container.add_stream("libx264", pace, options={"crf": "20", "preset": "veryfast"})
        else:
            stream = container.add_stream("mpeg4", pace, bit_rate=8_000_000)
        stream.pix_fmt = "yuv420p"  # what browsers take

        def write(picture: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield write
        container.mux(stream.encode(None))
