"""Windows of decoded frames: a whole video, a rolling part of a long one, or a camera's last seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from data.videos import VideoError, count_frames, decode, import_cv2, resize, resized
from recogniser.decoded import DecodedFrames
from utils import InputError

Pictures = dict[int, np.ndarray]  # short side -> RGB uint8 (height, width, 3)
Frame = tuple[float, float, Pictures]  # start and duration in seconds, and the picture at each size


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a video, from frame `first` on."""

    first: int
    times: np.ndarray  # (count + 1,) seconds at which the frames begin, and at which the last one ends
    frames: Mapping[int, Mapping[int, np.ndarray]]  # short side -> frame number -> picture that clips need

    @classmethod
    def of(cls, held: Sequence[Frame], first: int, end: float) -> Window:
        """Return a window of consecutive frames."""
        sides = held[0][2] if held else {}
        frames = {side: {first + place: pictures[side] for place, (*_, pictures) in enumerate(held)} for side in sides}
        return cls(first, np.array([second for second, *_ in held] + [end]), frames)

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
        """Convert places, counted in frames of the window and possibly fractional, to seconds."""
        return np.interp(places, np.arange(len(self.times)), self.times)


def whole_video(path: Path, streams: Sequence[DecodedFrames]) -> Window:
    """Return a whole video, with only those frames that the streams' clips need. Raises VideoError.

    Which frames they need depends on the number of frames. The number of packets is the first guess. If it is
    wrong, the video is decoded again.
    """
    count = count_frames(path)
    while True:
        wanted = [(s.short_side, set(s.needed(count))) for s in streams if count >= s.fewest]
        frames: dict[int, dict[int, np.ndarray]] = {stream.short_side: {} for stream in streams}
        times = [0.0]
        for number, frame in enumerate(decode(path)):
            if sides := {side for side, numbers in wanted if number in numbers}:
                for side, picture in shrunk(frame.picture(), sides).items():
                    frames[side][number] = picture
            times[number:] = [frame.seconds, frame.seconds + frame.lasts]
        if len(times) - 1 == count:
            return Window(0, np.array(times), frames)
        count = len(times) - 1


def rolling_windows(frames: Iterable[Frame], rate: float, seconds: float, fewest: int = 1) -> Iterator[Window]:
    """Yield windows of `seconds` by the frames' times. Each begins half a window after the one before.

    The last window reaches to the end of the video, unless that is less than a quarter of a window away. A
    shorter video is one window. Since frame rates may vary, windows of fewer than `fewest` frames are left
    out unless all are. At most one window of frames is in memory. `rate`: frames per second.
    """
    near = 0.5 / rate  # a window begins and ends with the frame nearest to its time
    seconds, step = (max(1, round(length * rate)) / rate for length in (seconds, seconds / 2))
    held: list[Frame] = []  # the latest frames
    total = done = 0  # frames seen, windows that have ended
    end, given = 0.0, False

    def window(begin: float, end: float) -> Window:
        chosen = [frame for frame in held if frame[0] > begin - near]
        return Window.of(chosen, total - len(chosen), end)

    def ended(now: float) -> Iterator[Window]:
        """Yield the windows that end by this second."""
        nonlocal done, given
        while now > done * step + seconds - near:
            one = window(done * step, min(now, done * step + seconds))
            done += 1
            if one.count >= fewest:
                given = True
                yield one

    for frame in frames:
        yield from ended(frame[0])
        end, total = frame[0] + frame[1], total + 1
        held = [one for one in held if one[0] > min(done * step, end - seconds) - near] + [frame]
    yield from ended(end)
    covered = (done - 1) * step + seconds if done else 0.0
    last = window(end - seconds, end)
    if last.count and (not given or (end - covered > step / 2 + near / 2 and last.count >= fewest)):
        yield last


def frames_in_file(path: Path, sides: Sequence[int]) -> Iterator[Frame]:
    """Yield the frames of a video file. Raises VideoError."""
    return ((frame.seconds, frame.lasts, shrunk(frame.picture(), sides)) for frame in decode(path))


def frames_in_memory(pictures: Iterable[np.ndarray], sides: Sequence[int], rate: float) -> Window:
    """Return a window of all frames, RGB uint8 (height, width, 3), of an iterable. Raises VideoError."""
    if not 0 < rate < float("inf"):
        raise VideoError(f"no video has {rate} frames per second")
    held: list[Frame] = []
    for picture in pictures:
        shape, kind = np.shape(picture), getattr(picture, "dtype", type(picture).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or not min(shape):
            raise VideoError(f"frame {len(held)} is {kind} {shape}, not RGB uint8 (height, width, 3)")
        held.append((len(held) / rate, 1 / rate, shrunk(picture, sides)))
    return Window.of(held, 0, len(held) / rate)


class Camera:
    """A camera, by its number, or another source that OpenCV opens, such as a URL."""

    def __init__(self, source: str) -> None:
        self.cv2 = import_cv2()
        is_number = source.isdecimal() and source.isascii() and len(source) < 5
        self.capture = self.cv2.VideoCapture(int(source) if is_number else source)
        if not self.capture.isOpened():
            raise InputError(f"--camera {source}: no such camera, or it is in use; try another number or a URL")
        rate = self.capture.get(self.cv2.CAP_PROP_FPS)
        self.rate = rate if 1 <= rate <= 1000 else 25.0  # nominal frames per second
        self.begun = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the camera was opened; its frames' times use this clock."""
        return time.monotonic() - self.begun

    def frames(self, sides: Sequence[int]) -> Iterator[Frame]:
        """Yield frames until the camera ends. A thread reads without pause, however slowly they are taken."""
        ready: SimpleQueue[Frame | None] = SimpleQueue()
        left = threading.Event()

        def read() -> None:
            while not left.is_set():
                is_read, picture = self.capture.read()
                if not is_read or picture is None:
                    break
                now, picture = self.now(), self.cv2.cvtColor(picture, self.cv2.COLOR_BGR2RGB)
                ready.put((now, 1 / self.rate, shrunk(picture, sides)))
            self.capture.release()

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            reading.add_done_callback(lambda _: ready.put(None))
            try:
                yield from iter(ready.get, None)
                reading.result()  # raises the reader's exception, if any
            finally:
                left.set()


def shrunk(picture: np.ndarray, sides: Iterable[int]) -> Pictures:
    """Scale RGB uint8 (height, width, 3) to each of these lengths of the shorter side; 0 keeps the size."""
    height, width = picture.shape[:2]
    return {side: resize(picture, *resized(height, width, side)) for side in sides}
