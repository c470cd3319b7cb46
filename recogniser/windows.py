"""Windows of decoded frames: a whole video, a rolling part of a long one, or a camera's last seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.videos import VideoError, count_frames, decode, frame_rate, import_cv2, resize, resized
from recogniser.decoded import DecodedFrames
from utils import InputError

FramesBySide = Mapping[int, Mapping[int, np.ndarray]]  # short side -> frame's number -> RGB uint8 (height, width, 3)


@dataclass(frozen=True)
class Window:
    """Frames from frame `first` on."""

    first: int
    times: np.ndarray  # (count + 1,) seconds at which the frames begin, and at which the last one ends
    frames: FramesBySide  # at least those that the clips need

    @property
    def count(self) -> int:
        return len(self.times) - 1

    @property
    def start(self) -> float:
        return float(self.times[0])

    @property
    def end(self) -> float:
        return float(self.times[-1])

    def seconds(self, places: np.ndarray) -> np.ndarray:
        """Return the second of each place, which counts frames of the window and may lie within one."""
        return np.interp(places, np.arange(len(self.times)), self.times)


def whole_video(path: Path, streams: Sequence[DecodedFrames]) -> Window:
    """Return all of a video, with the frames that the streams' clips need and no others. Raises VideoError.

    Which they are follows from the number of frames. The number of packets is believed first; where that proves wrong,
    the video is decoded again.
    """
    count = count_frames(path)
    while True:
        wanted = [(s.short_side, set(s.needed(count))) for s in streams if count >= s.fewest]
        frames: dict[int, dict[int, np.ndarray]] = {stream.short_side: {} for stream in streams}
        times = [0.0]
        for number, frame in enumerate(decode(path)):
            if sides := {side for side, numbers in wanted if number in numbers}:
                picture = frame.picture()
                for side in sides:
                    frames[side][number] = _shrunk(picture, side)
            times[number:] = [frame.seconds, frame.seconds + frame.lasts]
        if len(times) - 1 == count:
            return Window(0, np.array(times), frames)
        count = len(times) - 1


def rolling_windows(
    path: Path, sides: Sequence[int], seconds: float, step: float, fewest: int = 1
) -> Iterator[Window]:
    """Give windows of `seconds`, one every `step` seconds, by the file's time stamps; one if the video is shorter.

    The last one reaches to the video's end, unless that is less than half a step away. Windows of less than `fewest`
    frames, as where a camera gave few, are left out unless all are. No more than one window of frames is in memory.
    Raises VideoError.
    """
    rate = frame_rate(path)
    near = 0.5 / rate  # a window begins and ends with the frame nearest to its time
    seconds, step = (max(1, round(length * rate)) / rate for length in (seconds, step))
    held: list[tuple[float, dict[int, np.ndarray]]] = []  # (second, short side -> frame) of the last frames
    total = done = 0  # frames seen, windows that have ended
    end, given = 0.0, False

    def window(begin: float, end: float) -> Window:
        chosen = [one for one in held if one[0] > begin - near]
        first = total - len(chosen)
        frames = {side: {first + place: one[side] for place, (_, one) in enumerate(chosen)} for side in sides}
        return Window(first, np.array([second for second, _ in chosen] + [end]), frames)

    def ended(now: float) -> Iterator[Window]:
        """The windows that end by this second."""
        nonlocal done, given
        while now > done * step + seconds - near:
            one = window(done * step, min(now, done * step + seconds))
            done += 1
            if one.count >= fewest:
                given = True
                yield one

    for frame in decode(path):
        yield from ended(frame.seconds)
        picture = frame.picture()
        end, total = frame.seconds + frame.lasts, total + 1
        held = [one for one in held if one[0] > min(done * step, end - seconds) - near]
        held.append((frame.seconds, {side: _shrunk(picture, side) for side in sides}))
    yield from ended(end)
    covered = (done - 1) * step + seconds if done else 0.0
    last = window(end - seconds, end)
    if not given or (end - covered > step / 2 + near / 2 and last.count >= fewest):
        yield last


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
    return Window(0, np.arange(count + 1) / rate, held)


class Camera:
    """A camera's last frames. A thread reads it without pause, so that a slow network sees the present.

    `source` is a camera's number or a URL, which OpenCV opens, or a file, which is played at its own speed.
    """

    def __init__(self, source: str, sides: Sequence[int]) -> None:
        self.source, self.is_file = source, Path(source).is_file()
        numbered = source.isdecimal() and source.isascii() and len(source) < 5
        self.capture = None if self.is_file else import_cv2().VideoCapture(int(source) if numbered else source)
        if self.capture is None:
            try:
                self.rate = frame_rate(Path(source))  # frames per second, if it keeps pace
            except VideoError as error:
                raise InputError(f"--camera {source}: {error}") from None
        elif self.capture.isOpened():
            rate = self.capture.get(import_cv2().CAP_PROP_FPS)
            self.rate = rate if 1 <= rate <= 1000 else 25.0
        else:
            raise InputError(f"--camera {source}: no such camera, or it is in use; try another number, a URL or a file")
        self.sides = sides
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
            if self.capture is not None:
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
        end = held[-1][0] + 1 / self.rate
        frames = {side: {first + place: frame[side] for place, (_, frame) in enumerate(held)} for side in self.sides}
        return Window(first, np.array([second for second, _ in held] + [end]), frames)

    def _read(self, length: int) -> None:
        self.begun = time.monotonic()
        try:
            for picture in self._pictures():
                now = self.now()
                shrunk = {side: _shrunk(picture, side) for side in self.sides}
                with self.changed:
                    self.held = [*self.held, (now, shrunk)][-length:]
                    self.total += 1
                    self.changed.notify()
        except VideoError as error:
            self.error = InputError(f"--camera {self.source}: {error}")
        except BaseException as error:
            self.error = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify()


    def _pictures(self) -> Iterator[np.ndarray]:
        """RGB uint8 (height, width, 3), as they come, until the camera ends or `self.ended` is set."""
        if self.capture is None:
            for frame in decode(Path(self.source)):
                time.sleep(max(0.0, self.begun + frame.seconds - time.monotonic()))
                if self.ended:
                    return
                yield frame.picture()
            return
        cv2 = import_cv2()
        while not self.ended:
            ok, picture = self.capture.read()
            if not ok or picture is None:
                return
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _shrunk(frame: np.ndarray, short_side: int) -> np.ndarray:
    height, width = frame.shape[:2]
    return resize(frame, *resized(height, width, short_side))
