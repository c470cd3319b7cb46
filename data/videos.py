"""Video files: find them under a folder, decode them to RGB frames, write frames as JPEG files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloader.names import UCF_NAME, VIDEO_SUFFIXES
from utils import InputError

EXACT_COUNTS = (".avi", ".mp4", ".m4v", ".mov")  # containers that store how many frames they hold


class VideoError(Exception):
    """One video can't be used; the message is the reason, in words for the list of failed videos."""


@dataclass(frozen=True)
class VideoFile:
    """A video to extract: a file, or for `.flo` input a folder of them."""

    path: Path
    name: str  # relative to the searched folder, for messages
    folder: str  # where its frames go, relative, with "/": `v_X` for UCF names, else the path without suffix
    size: int  # bytes; this and the time tell a file that was replaced
    mtime_ns: int


def find_videos(root: Path, skip: Path | None = None) -> list[VideoFile]:
    """All videos under `root` at any depth, sorted by output folder; hidden files and `skip` are left out.

    Raises InputError when there is no such folder, no video in it, or when two videos would be written to
    the same place.
    """
    videos = []
    for folder, files in _walk(root, skip):
        for file in files:
            path = folder / file
            if path.suffix.lower() in VIDEO_SUFFIXES:
                status = path.stat() if path.exists() else None  # a broken link: reading it will say so
                size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
                videos.append(VideoFile(path, *_names(path.relative_to(root), path.stem), size, time))
    if not videos:
        raise InputError(f"{root} holds no video ({', '.join(VIDEO_SUFFIXES)}); give the folder of the videos")
    return sort_videos(videos)


def find_flo_folders(root: Path, skip: Path | None = None) -> list[VideoFile]:
    """All folders under `root` that hold .flo files, each one video; sorted and checked as in find_videos."""
    videos = []
    for folder, files in _walk(root, skip):
        flows = [folder / file for file in files if file.lower().endswith(".flo")]
        if flows:
            status = [flow.stat() for flow in flows]
            size, time = sum(file.st_size for file in status), max(file.st_mtime_ns for file in status)
            relative = folder.relative_to(root) if folder != root else Path(root.resolve().name)
            videos.append(VideoFile(folder, *_names(relative, folder.name, suffix=False), size, time))
    if not videos:
        raise InputError(f"{root} holds no .flo file; --method flo expects one folder of .flo files per video")
    return sort_videos(videos)


def sort_videos(videos: list[VideoFile]) -> list[VideoFile]:
    """Sort by output folder; raise InputError naming two videos that would be written to the same place.

    Names are compared without case, as Windows, macOS and the dataset loaders do.
    """
    taken: dict[str, VideoFile] = {}
    for video in videos:
        other = taken.setdefault(video.folder.casefold(), video)
        if other is not video:
            raise InputError(
                f"{other.name} and {video.name} would both be written to {video.folder}; rename or move one of them"
            )
    for video in videos:
        for parent in Path(video.folder.casefold()).parents:
            if parent.as_posix() in taken:
                other = taken[parent.as_posix()]
                raise InputError(
                    f"{other.name} and {video.name}: the frames of one would lie inside the other's folder; "
                    f"rename {other.name}"
                )
    return sorted(videos, key=lambda video: video.folder)


def _walk(root: Path, skip: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in a fixed order; follows links to folders, each real folder once."""
    if not root.exists():
        raise InputError(f"{root} does not exist; give the folder of the videos")
    if not root.is_dir():
        raise InputError(f"{root} is a file; give the folder that holds the videos")
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
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def _names(relative: Path, stem: str, suffix: bool = True) -> tuple[str, str]:
    """The name shown and the output folder of a video at `relative`."""
    if UCF_NAME.fullmatch(stem):
        return relative.as_posix(), stem
    return relative.as_posix(), (relative.with_suffix("") if suffix else relative).as_posix()


def import_cv2():
    """OpenCV with one thread, as videos are spread over processes, and silent, for the sake of the bar."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"OpenCV is missing ({error}); pip install opencv-contrib-python-headless") from error
    cv2.setNumThreads(1)
    return cv2


def resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter of them scaled to `short_side`; 0 keeps the size."""
    if not short_side:
        return height, width
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, channels), uint8 or float32: by area averaging when shrinking, bilinearly when growing."""
    cv2 = import_cv2()
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_frames(
    path: Path, short_side: int = 0, every: int = 1, claim: Callable[[int], None] | None = None
) -> Iterator[np.ndarray]:
    """Decode a video: yield every `every`-th frame from the first on as RGB uint8 (height, width, 3).

    The shorter side is scaled to `short_side` (0 keeps the size). `claim` is told how many frames will come if
    the file's header is right. One frame is in memory at a time. Raises VideoError when nothing can be decoded,
    and at the end when the file stopped well before the end that its own header gives (cut off or damaged).
    """
    cv2 = import_cv2()
    if path.exists() and not path.is_file():  # opening a pipe waits for somebody to write to it
        raise VideoError("is no file but a folder, a pipe or a device")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise VideoError(
                "cannot be opened: "
                + ("the file is empty" if not path.stat().st_size else "not a video, damaged, or of an unknown codec")
            )
        claimed, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        if claim and claimed > 0:
            claim(-int(-claimed // every))
        decoded, first, last = 0, 0.0, 0.0
        while capture.grab():
            last = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = first if decoded else last
            if decoded % every == 0:
                ok, frame = capture.retrieve()
                if not ok:
                    raise VideoError(f"frame {decoded + 1} cannot be decoded")
                if not decoded:  # a stream may change its size; all frames get the first one's
                    height, width = resized(frame.shape[0], frame.shape[1], short_side)
                yield resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), height, width)
            decoded += 1
    finally:
        capture.release()
    if not decoded:
        raise VideoError("no frame could be decoded")
    # Headers are often off by a few frames, some count dropped ones, and where there is no count OpenCV gives
    # duration x rate, although sound may outlast the pictures. So a file counts as cut off only when both its
    # frames and its time stamps end well before what it promises.
    shown = (last - first) * rate + 1
    tolerance = 0.1 if path.suffix.lower() in EXACT_COUNTS else 0.5
    if claimed - max(decoded, shown) > max(5.0, tolerance * claimed):
        raise VideoError(f"cut off or damaged: {decoded} of {int(claimed)} frames could be decoded")


def claimed_frames(path: Path) -> int:
    """Frames by the file's header, without decoding any; 0 where it doesn't say."""
    cv2 = import_cv2()
    capture = cv2.VideoCapture(str(path))
    claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return max(0, int(claimed))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """An RGB (height, width, 3) or grey (height, width) uint8 image as extraction writes it.

    Colour is subsampled 4:2:0 as in almost every published frame set; on UCF101 4:4:4 takes 11 % more space
    at quality 90 for colour that the videos themselves store at half resolution.
    """
    import simplejpeg

    if image.ndim == 2:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image[:, :, None]), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
