"""Writing films: H.264, which browsers play, by PyAV where it is installed or by OpenCV where it can; else MPEG-4."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from data.videos import import_cv2
from utils import InputError, atomic_path, check_writable

Write = Callable[[np.ndarray], None]  # adds a picture, RGB uint8 (height, width, 3), all of one size with even sides


@contextlib.contextmanager
def open_film(target: Path, rate: float) -> Iterator[Write]:
    """Give a function that adds a picture to a film of `rate` pictures a second at `target`.

    The film appears when the block ends well.
    """
    check_writable(target.parent)  # neither library says why it can't
    with atomic_path(target) as temporary:
        path = temporary.with_suffix(".mp4")  # OpenCV chooses the container by the suffix
        try:
            with _writer(path, rate, target) as write:
                yield write
            os.replace(path, temporary)
        finally:
            path.unlink(missing_ok=True)


def _writer(path: Path, rate: float, target: Path) -> contextlib.AbstractContextManager[Write]:
    try:
        import av
    except ImportError:
        return _opencv(path, rate, target)
    return _pyav(path, rate) if "libx264" in av.codecs_available else _opencv(path, rate, target)


@contextlib.contextmanager
def _pyav(path: Path, rate: float) -> Iterator[Write]:
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"  # what browsers take
        stream.options = {"crf": "20", "preset": "veryfast"}

        def write(picture: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield write
        container.mux(stream.encode(None))


@contextlib.contextmanager
def _opencv(path: Path, rate: float, target: Path) -> Iterator[Write]:
    cv2 = import_cv2()
    writer, written = cv2.VideoWriter(), 0

    def write(picture: np.ndarray) -> None:
        nonlocal written
        size = (picture.shape[1], picture.shape[0])
        if not writer.isOpened() and not writer.open(str(path), cv2.VideoWriter_fourcc(*"avc1"), rate, size):
            if not writer.open(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size):
                path.write_bytes(bytes(1 << 16))  # a full disk says so here
                raise InputError(f"cannot write {target}: this OpenCV writes no MPEG-4; save a .png instead")
            print(
                "note: this OpenCV writes no H.264, so the film is MPEG-4, which players show and browsers don't; "
                "pip install av",
                file=sys.stderr,
            )
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        written += 1

    try:
        yield write
        writer.release()
        if round(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) != written:
            raise InputError(f"cannot write {target}: the film came out cut off, most likely for lack of disk")
    finally:
        writer.release()
