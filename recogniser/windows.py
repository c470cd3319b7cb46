"""Windows of decoded frames: a whole video, a rolling part of a long one, or a camera's last seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.videos import VideoError, import_cv2, read_frames, resize, resized
from recogniser.decoded import DecodedFrames
from utils import InputError

FramesBySide = Mapping[int, Mapping[int, np.ndarray]]  # short side -> frame's number -> RGB uint8 (height, width, 3)


@dataclass(frozen=True)
class Window:
    """`count` frames from frame `first` on, at `rate` frames per second; `start` and `end` in seconds."""

    first: int
    count: int
    start: float
    end: float
    rate: float
    frames: FramesBySide  # at least those that the clips need


def frame_rate(path: Path | str) -> float:
    """Frames per second by a video's header; 25 where it says nothing usable."""
    capture = import_cv2().VideoCapture(str(path))
    rate = _rate_of(capture)
    capture.release()
    return rate


def _rate_of(capture: Any) -> float:
    rate = capture.get(import_cv2().CAP_PROP_FPS)
    return rate if 1 <= rate <= 1000 else 25.0


def whole_video(path: Path, streams: Sequence[DecodedFrames]) -> Window:
    """All of a video, with the frames that the streams' clips need and no others. Raises VideoError.

    Which they are follows from the number of frames. The header's is believed first; where it proves wrong,
    the video is decoded again.
    """
    count, known = 0, False
    while True:
        claims: list[int] = []
        wanted: list[tuple[int, set[int]]] = []
        frames: dict[int, dict[int, np.ndarray]] = {stream.short_side: {} for stream in streams}
        number = -1
        for number, frame in enumerate(read_frames(path, claim=claims.append)):
            if number == 0:
                count = count if known else sum(claims)
                wanted = [(s.short_side, set(s.needed(count))) for s in streams if count >= s.fewest]
            for side, numbers in wanted:
                if number in numbers and number not in frames[side]:
                    frames[side][number] = _shrunk(frame, side)
        if number + 1 == count:
            rate = frame_rate(path)
            return Window(0, count, 0.0, count / rate, rate, frames)
        count, known = number + 1, True


def rolling_windows(path: Path, sides: Sequence[int], seconds: float, step: float) -> Iterator[Window]:
    """Windows of `seconds`, one every `step` seconds; one if the video is shorter.

    The last one reaches to the video's end, unless that is less than half a step away. No more than one window
    of frames is in memory. Raises VideoError.
    """
    rate = frame_rate(path)
    length, hop = max(1, round(seconds * rate)), max(1, round(step * rate))
    frames: dict[int, dict[int, np.ndarray]] = {side: {} for side in sides}
    total = covered = 0
    for number, frame in enumerate(read_frames(path)):
        total = number + 1
        for side, held in frames.items():
            held[number] = _shrunk(frame, side)
            held.pop(number - length, None)
        first = total - length
        if first >= 0 and first % hop == 0:
            covered = total
            yield Window(first, length, first / rate, total / rate, rate, frames)
    if total - covered > (hop / 2 if covered else 0):
        first = max(0, total - length)
        yield Window(first, total - first, first / rate, total / rate, rate, frames)


def frames_in_memory(frames: Iterable[np.ndarray], sides: Sequence[int], rate: float) -> Window:
    """All frames, RGB uint8 (height, width, 3), of an array, a list or an iterator. Raises VideoError for others."""
    held: dict[int, dict[int, np.ndarray]] = {side: {} for side in sides}
    count = 0
    for number, frame in enumerate(frames):
        shape, kind = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or not min(shape):
            raise VideoError(f"frame {number} is {kind} {shape}, not RGB uint8 (height, width, 3)")
        for side, kept in held.items():
            kept[number] = _shrunk(frame, side)
        count = number + 1
    if not count or not 0 < rate < float("inf"):
        raise VideoError(f"{count} frames at {rate} per second are no video")
    return Window(0, count, 0.0, count / rate, rate, held)


class Camera:
    """A camera's last frames. A thread reads it without pause, so that a slow network sees the present.

    `source` is a camera's number, or a URL or file that OpenCV opens; a file is played at its own speed.
    """

    def __init__(self, source: str, sides: Sequence[int]) -> None:
        numbered = source.isdecimal() and source.isascii() and len(source) < 5
        self.capture = import_cv2().VideoCapture(int(source) if numbered else source)
        if not self.capture.isOpened():
            raise InputError(f"--camera {source}: no such camera, or it is in use; try another number, a URL or a file")
        self.rate = _rate_of(self.capture)  # frames per second, if it keeps pace
        self.sides, self.paced = sides, Path(source).is_file()
        self.changed = threading.Condition()  # guards the four below
        self.held: list[tuple[float, dict[int, np.ndarray]]] = []  # (second, short side -> frame)
        self.total = 0  # frames seen
        self.begun = time.monotonic()
        self.ended = False
        self.error: BaseException | None = None

    def windows(self, seconds: float, step: float) -> Generator[Window, None, None]:
        """The frames of the last `seconds`, at least `step` seconds after the ones before, until the camera ends.

        A camera that gives fewer frames per second than it says fills longer windows.
        """
        length, hop = max(1, round(seconds * self.rate)), max(1, round(step * self.rate))
        thread = threading.Thread(target=self._read, args=(length,), daemon=True)
        thread.start()
        due = length
        try:
            while True:
                held, total, ended = self._wait(due)
                if self.error is not None:
                    raise self.error
                if total >= due or (ended and held and due == length):  # the latter: shorter than one window
                    due = total + hop
                    yield self._window(held, total - len(held))
                elif ended:
                    return
        finally:
            self.ended = True
            thread.join()
            self.capture.release()

    def now(self) -> float:
        """Seconds since the first frame was asked for: what windows' times are counted in."""
        return time.monotonic() - self.begun

    def _wait(self, due: int) -> tuple[list[tuple[float, dict[int, np.ndarray]]], int, bool]:
        """What is held after `due` frames, or at the end, or now and then before; frames seen; at the end?"""
        with self.changed:
            # The limit is for Windows, where Ctrl-C doesn't end a wait.
            self.changed.wait_for(lambda: self.ended or self.total >= due, timeout=0.2)
            return list(self.held), self.total, self.ended

    def _window(self, held: list[tuple[float, dict[int, np.ndarray]]], first: int) -> Window:
        start, end = held[0][0], held[-1][0] + 1 / self.rate
        frames = {side: {first + place: frame[side] for place, (_, frame) in enumerate(held)} for side in self.sides}
        return Window(first, len(held), start, end, len(held) / (end - start), frames)

    def _read(self, length: int) -> None:
        cv2 = import_cv2()
        self.begun = time.monotonic()
        try:
            while not self.ended:
                if self.paced:
                    time.sleep(max(0.0, self.begun + self.total / self.rate - time.monotonic()))
                ok, frame = self.capture.read()
                if not ok:
                    break
                now = self.now()
                picture = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                shrunk = {side: _shrunk(picture, side) for side in self.sides}
                with self.changed:
                    self.held = [*self.held, (now, shrunk)][-length:]
                    self.total += 1
                    self.changed.notify()
        except BaseException as error:
            self.error = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify()


def _shrunk(frame: np.ndarray, short_side: int) -> np.ndarray:
    height, width = frame.shape[:2]
    return resize(frame, *resized(height, width, short_side))
