"""Video files: find them under a folder, decode them to RGB frames, write frames as JPEG files."""

import contextlib
import functools
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.names import UCF_NAME, VIDEO_SUFFIXES, first_few
from utils import InputError, plural

LONGEST_SIDE = 65_500  # of a JPEG
REORDERED = 8  # frames that a decoder may still return after a damaged packet


class VideoError(Exception):
    """One video can't be used. The message is the reason, worded for the list of failed videos."""


@dataclass(frozen=True)
class VideoFile:
    """A video file to extract."""

    path: Path
    name: str  # relative to the searched folder, for messages
    folder: str  # relative output folder, with "/": `v_X` for UCF names, else the path without suffix
    size: int  # bytes; size and time reveal a replaced file
    mtime_ns: int  # of the last write or renaming


def find_videos(root: Path, skip: Path | None = None) -> list[VideoFile]:
    """Return all videos under `root` at any depth, sorted by output folder. Hidden files and `skip` are left out.

    Links are followed. Files without a video's suffix are left out, too, and reported on stderr. Raises
    InputError if the folder doesn't exist or holds no video, or if two videos would be written to one place.
    """
    videos, left_out = [], []
    for path in _files(root, skip):
        relative = path.relative_to(root)
        if relative.suffix.lower() not in VIDEO_SUFFIXES:
            left_out.append(relative.as_posix())
            continue
        folder = relative.stem if UCF_NAME.fullmatch(relative.stem) else relative.with_suffix("").as_posix()
        videos.append(VideoFile(path, relative.as_posix(), folder, *stamp(path)))
    # Names are compared ignoring case, as Windows, macOS and the dataset loaders do.
    first = {video.folder.casefold(): video for video in reversed(videos)}
    for video in videos:
        written = Path(video.folder.casefold())
        for place in (written, *written.parents):
            if (other := first.get(place.as_posix(), video)) is not video:
                raise InputError(f"{other.name} and {video.name} would both be written to {other.folder}; rename "
                                 "or move one of them")
    others = f"{plural(len(left_out), 'file')} not named like videos ({first_few(left_out)})" if left_out else ""
    if not videos:
        raise InputError(f"{root} holds no video{others and f', but {others}'}; give the folder of the videos")
    if others:
        print(f"left out: {others}", file=sys.stderr)
    return sorted(videos, key=lambda video: video.folder)


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's size and the later of its times, in ns (mv keeps the last write's); 0, 0 if out of reach."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
    return 0, 0


def _files(root: Path, skip: Path | None) -> Iterator[Path]:
    """Yield all files in a fixed order. Follows links, but visits each real folder once."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder; give the folder of the videos")
    seen = {os.path.realpath(skip)} if skip else set()

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def import_cv2():
    """Import OpenCV for flow and resizing, not for files. One thread, as videos run in parallel."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    import cv2

    cv2.setNumThreads(1)
    return cv2


def import_av():
    """Import PyAV. Its errors are logged, so that `decode` can read them, but not printed."""
    import av

    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # report errors that repeat those of the previous file
    logging.getLogger("libav").addHandler(logging.NullHandler())
    logging.getLogger("libav").propagate = False
    return av


def scaled(picture: np.ndarray, short_side: int, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Scale a picture, uint8 (height, width, 3), to a shorter side of `short_side`; 0 keeps the size.

    By area averaging when shrinking, bilinear when growing. The size may change within a video: `shape` is
    then its first picture's, whose scaled size all get. Raises VideoError if that exceeds the limits of JPEG.
    """
    height, width = (shape or picture.shape)[:2]
    scale = short_side / min(height, width) if short_side else 1
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    if max(high, wide) > LONGEST_SIDE:
        result = f", and {wide:,} x {high:,} scaled" if short_side else ""
        raise VideoError(f"is {width:,} x {height:,} pixels{result}: no image may be over {LONGEST_SIDE:,} long")
    if picture.shape[:2] == (high, wide):
        return picture
    cv2, shrinks = import_cv2(), high * wide < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (wide, high), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Decoded:
    """A decoded frame before conversion to RGB: that costs more than decoding, and most aren't needed."""

    seconds: float  # since the first frame, by the file's time stamps
    lasts: float  # duration in seconds
    frame: Any  # av.VideoFrame
    convert: Callable[[Any], Any]

    def picture(self) -> np.ndarray:
        """Return RGB uint8 (height, width, 3), upright."""
        picture = self.convert(self.frame).to_ndarray()
        matrix = self.frame.side_data.get("DISPLAYMATRIX")  # phones store the rotation here
        if matrix is None:
            return picture
        (xx, xy, _), (yx, yy, _), _ = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3).tolist()  # x' = x xx + y yx
        if abs(xx) < abs(xy):
            picture, xx, yy = picture.transpose(1, 0, 2), yx, xy
        return np.ascontiguousarray(picture[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1])


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any, float]]:
    """Open a video file. Yields PyAV's container, the stream that players show, and its frames per second.

    The rate is the header's, or 25 if that is unusable. If it varies, it exceeds frames divided by seconds.
    Raises VideoError.
    """
    av = import_av()
    if not path.exists():
        raise VideoError("cannot be opened: no such file")
    if not path.is_file():  # opening a pipe would wait for a writer
        raise VideoError("is no file but a folder, a pipe or a device")
    with contextlib.ExitStack() as stack:
        try:
            source: Any = f"file:{path}"  # else FFmpeg takes text before a colon for a protocol
            source.encode()
        except UnicodeEncodeError:
            source = stack.enter_context(open(path, "rb"))
        try:
            only_files = {"protocol_whitelist": "file"}  # a playlist disguised as a video must not open URLs
            container = stack.enter_context(av.open(source, metadata_errors="ignore", container_options=only_files))
        except av.error.FFmpegError as error:
            reason = "not a video, damaged, or of an unknown kind" if path.stat().st_size else "the file is empty"
            raise VideoError(f"cannot be opened: {reason} ({error.strerror})") from None
        films = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not films:
            raise VideoError("holds no film" + (", only a cover picture" if container.streams.video else ""))
        best = container.streams.best("video")
        stream = best if best in films else films[0]
        if stream.codec_context is None:
            raise VideoError("its pictures are of an unknown codec")
        stream.codec_context.thread_count = 1  # the videos are distributed over processes
        rate = float(max(stream.average_rate or 0, stream.guessed_rate or 0))
        yield container, stream, rate if 1 <= rate <= 1000 else 25.0


def frame_rate(path: Path) -> float:
    """Return a video's frames per second, as `open_video` does. Raises VideoError."""
    with open_video(path) as (_, _, rate):
        return rate


def count_frames(path: Path) -> int:
    """Count a video's frames by its packets, which is fast because none is decoded.

    Exact except for damaged files. Raises VideoError.
    """
    frames = 0
    with open_video(path) as (container, stream, _), contextlib.suppress(import_av().error.FFmpegError):
        for packet in container.demux(stream):
            frames += packet.size > 0 and not packet.is_discard
    return frames


def decode(path: Path) -> Iterator[Decoded]:
    """Decode a video, one frame in memory at a time.

    Raises VideoError if nothing can be decoded, if more than a tenth of the frames is damaged, and at the end
    if the file is cut off: the demuxer or decoder reports that, or packets listed in the index are missing.
    The header's length is not used: it is often wrong, and the sound may be longer than the video.
    """
    av = import_av()
    single = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 18 else {}
    convert = functools.partial(av.video.reformatter.VideoReformatter().reformat, format="rgb24", **single)
    with open_video(path) as (container, stream, rate):
        demuxer = container.demux(stream)  # ends with an empty packet, which flushes the decoder
        packets = frames = damaged = since = 0  # `since`: frames since the last damage
        first, last, ended, cut_off = None, -1 / rate, False, False
        while not ended:
            with av.logging.Capture() as said:
                try:
                    packet = next(demuxer, None)
                except av.error.FFmpegError:
                    packet, cut_off = None, True
            # Matroska's demuxer reports this only in its log.
            cut_off |= any("ended prematurely" in words for _, _, words in said)
            ended = packet is None
            whole = True
            if packet is not None and packet.size:
                packets, whole = packets + 1, not packet.is_corrupt
            try:
                decoded = stream.codec_context.decode(packet) if not ended or cut_off else []
            except av.error.FFmpegError as error:
                decoded, whole = [], whole and isinstance(error, av.error.EOFError)
            for frame in decoded:
                seconds = last + 1 / rate
                if frame.time is not None:
                    first = frame.time - seconds if first is None else first
                    if frame.time - first > last:  # time stamps jump back where recordings were joined
                        seconds = float(frame.time - first)
                last = seconds
                lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / rate
                frames, since, whole = frames + 1, since + 1, whole and not frame.is_corrupt
                yield Decoded(seconds, lasts, frame, convert)
            if not whole and frames:  # the first frames may refer to earlier ones that were not recorded
                damaged, since = damaged + 1, 0
        if container.format.name.startswith("mov"):
            cut_off |= len(getattr(stream, "index_entries", ())) > packets
    if not frames:
        raise VideoError("no frame could be decoded")
    if cut_off or (damaged and since < REORDERED) or damaged > frames / 10:
        raise VideoError(f"cut off or damaged: {plural(frames, 'frame')} could be decoded")


def read_frames(path: Path, short_side: int = 0, every: int = 1) -> Iterator[np.ndarray]:
    """Decode a video. Yields every `every`-th frame, from the first on, as RGB uint8 (height, width, 3).

    The shorter side is scaled to `short_side` (0 keeps the size). One frame is in memory at a time. Raises
    VideoError as `decode` and `scaled` do.
    """
    shape: tuple[int, ...] = ()
    for frame in itertools.islice(decode(path), 0, None, every):
        picture = frame.picture()
        shape = shape or picture.shape
        yield scaled(picture, short_side, shape)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode an RGB (height, width, 3) or grey (height, width) uint8 image as extraction writes it.

    Colour is subsampled 4:2:0, as in almost all published frame sets. On UCF101 at quality 90, 4:4:4 would
    take 11 % more space, for colour that the videos themselves store at half resolution.
    """
    import simplejpeg

    kinds = ("RGB", "420") if image.ndim == 3 else ("GRAY", "Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(np.atleast_3d(image)), quality, *kinds)
