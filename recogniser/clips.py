"""Decode videos and make clips of their frames in memory, as extraction would write and a loader read them."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from data.flow import quantise
from data.videos import Decoded, VideoError, count_frames, decode, encode_jpeg, import_av, import_cv2, scaled
from dataloader.clips import Batch, ClipDataset
from dataloader.frames import Source, decode_gray, decode_rgb
from dataloader.lists import Video
from dataloader.packed import consecutive_runs
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from utils import InputError, plural

PAIRS_AT_ONCE = 8  # frame pairs per flow call: enough for RAFT's batches, few enough to spread over cores


@dataclass(frozen=True)
class Flow:
    """A method of data.flow that maps frames to the flow between them, and how many threads may run it."""

    method: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
    threads: int = 1
    on_gpu: bool = False
    name: str = ""


@dataclass(frozen=True)
class ClipMaker:
    """How one stream's clips are made of decoded frames.

    They are made as by data/extract_rgb.py and data/extract_flow.py and read as by the loaders: flow is computed
    and quantised, and all images are JPEG-coded and decoded. If the preparation lacks a setting of the extraction,
    its default holds, except for the sampling rate: then every frame, as in others' frame sets.
    """

    name: str  # of the stream, or of one of several inputs of a head
    preparation: Preparation
    sampling: TestSampling
    flow: Flow | None = None  # for the modality flow

    @property
    def rate(self) -> int:
        """Every how many frames one is used."""
        return self.preparation.sampling_rate or 1 if self.preparation.modality == "rgb" else 1

    @property
    def short_side(self) -> int:
        return 256 if self.preparation.short_side is None else self.preparation.short_side

    @property
    def quality(self) -> int:
        return self.preparation.quality or 90

    @property
    def fewest(self) -> int:
        """The number of frames that one clip needs."""
        length = self.preparation.clip_length
        return length + 1 if self.flow else (length - 1) * self.rate + 1

    def too_few(self, count: int) -> str:
        """Say what is wrong with a video of `count` frames."""
        return f"has {plural(count, 'frame')}, and one clip of the {self.name} stream needs {self.fewest}"

    def starts(self, count: int) -> np.ndarray:
        """Return the frames at which the clips of a video of `count` frames begin, in time order. Shape (samples,)."""
        if count < self.fewest:
            raise VideoError(self.too_few(count))
        sampling = replace(self.sampling, every=self.rate)
        return self.rate * sampling.starts_in(self._images_of(count), self.preparation)

    def needed(self, count: int) -> list[int]:
        """Return the numbers of the frames, of `count`, that `clips` needs. Raises VideoError for too few."""
        return np.unique(self.starts(count)[:, None] + np.arange(0, self.fewest, self.rate)).tolist()

    def clips(self, window: "Window") -> Batch:
        """Return the clips of a window, as a loader would. Raises VideoError for too few frames."""
        frames = window.frames[self.short_side]
        steps = self.starts(window.count)[:, None] + np.arange(self.preparation.clip_length) * self.rate
        numbers = np.unique(steps).tolist()
        if self.flow:
            images = self._flows(self.flow, frames, numbers)
        else:
            coded = ((number, encode_jpeg(frames[number], self.quality)) for number in numbers)
            images = {number: decode_rgb(data, "the video").transpose(2, 0, 1) for number, data in coded}

        source = Source(Video("", -1, ""), images, self._images_of(window.count), "the video")
        dataset = ClipDataset([source], lambda _, chosen: [images[step * self.rate] for step in chosen],
                              self.preparation, replace(self.sampling, every=self.rate))  # fmt: skip
        return dataset.clips(source, np.random.default_rng())

    def _images_of(self, count: int) -> int:
        """Return how many images extraction would write for `count` frames."""
        return count - 1 if self.flow else -(-count // self.rate)

    def _flows(self, flow: Flow, frames: Mapping[int, np.ndarray], pairs: list[int]) -> dict[int, np.ndarray]:
        """Return the flow of sorted `pairs`, as read from disk, by the number of a pair's first frame."""

        def compute(run: Sequence[int]) -> list[np.ndarray]:
            return [self._coded(one) for one in flow.method(frames[n] for n in range(run[0], run[-1] + 2))]

        with ThreadPoolExecutor(flow.threads) as pool:
            found = pool.map(compute, consecutive_runs(pairs, PAIRS_AT_ONCE))
            return dict(zip(pairs, itertools.chain.from_iterable(found), strict=True))

    def _coded(self, flow: np.ndarray) -> np.ndarray:
        images = quantise(flow, self.preparation.flow_bound or 20.0)
        return np.stack([decode_gray(encode_jpeg(images[:, :, axis], self.quality), "the video") for axis in (0, 1)])


@dataclass(frozen=True)
class Window:
    """A video or a part of it: consecutive frames, numbered from 0."""

    times: np.ndarray  # (count + 1,) seconds at which the frames begin, and at which the last one ends
    # short side -> frame number -> RGB uint8 (height, width, 3), for the frames that clips need
    frames: Mapping[int, Mapping[int, np.ndarray]]

    @property
    def count(self) -> int:
        return len(self.times) - 1


def whole_video(path: Path, makers: Sequence[ClipMaker]) -> Window:
    """Return a whole video, with only those frames that the streams' clips need. Raises VideoError.

    Their choice depends on the number of frames. The number of packets is the first guess; if it is wrong, the
    video is decoded again.
    """
    count = count_frames(path)
    while True:
        wanted = [(maker.short_side, set(maker.needed(count))) for maker in makers if count >= maker.fewest]
        frames: dict[int, dict] = {maker.short_side: {} for maker in makers}
        times, shape = [0.0], ()
        for number, frame in enumerate(decode(path)):
            if sides := {side for side, numbers in wanted if number in numbers}:
                picture = frame.picture()
                shape = shape or picture.shape  # the first, as in extraction: it may change
                for side in sides:
                    frames[side][number] = scaled(picture, side, shape)
            times[number:] = [frame.seconds, frame.seconds + frame.lasts]
        if len(times) - 1 == count:
            return Window(np.array(times), frames)
        count = len(times) - 1


def sliding_windows(
    frames: Iterable[Decoded], rate: float, makers: Sequence[ClipMaker], seconds: float
) -> Iterator[Window]:
    """Yield windows of `seconds` by the frames' times, each half a window after the one before.

    `frames` are of data.videos.decode or of a camera, at about `rate` per second. Left out, unless all are:
    windows with too few frames for any clip, and a last one that has less than a quarter of a window to add.
    One window of frames is in memory.
    """
    near = 0.5 / rate  # a window begins with the frame nearest to its time
    fewest, sides = min(maker.fewest for maker in makers), {maker.short_side for maker in makers}
    held: list[tuple[float, float, dict]] = []  # the latest frames: start, end, and the picture at each size
    begin, given, shape = 0.0, False, ()

    def window() -> Window:
        shown = {side: dict(enumerate(pictured[side] for _, _, pictured in held)) for side in sides}
        return Window(np.array([start for start, _, _ in held] + [held[-1][1]]), shown)

    for frame in frames:
        while held and frame.seconds > begin + seconds - near:
            if len(held) >= fewest:
                given = True
                yield window()
            begin += seconds / 2
            held = [one for one in held if one[0] > begin - near]
        begin = begin if held else frame.seconds
        picture = frame.picture()
        shape = shape or picture.shape
        pictured = {side: scaled(picture, side, shape) for side in sides}
        held.append((frame.seconds, frame.seconds + frame.lasts, pictured))
    added = held[-1][1] - begin - seconds / 2 if held else 0.0
    if held and (not given or (len(held) >= fewest and added > seconds / 4)):
        yield window()


class Camera:
    """A camera by its number, or a stream by its URL. OpenCV reads it."""

    def __init__(self, source: str) -> None:
        if Path(source).is_file():
            raise InputError(f"--camera {source} is a file: name it as a VIDEO, with --sliding")
        cv2, is_number = import_cv2(), source.isdecimal() and source.isascii() and len(source) < 5
        self.capture = cv2.VideoCapture(int(source) if is_number else source)
        if not self.capture.isOpened():
            raise InputError(f"--camera {source}: no such camera, or it is in use; try another number or a URL")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 1 <= rate <= 1000 else 25.0  # frames per second, by its own account
        self.begun = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the camera was opened; its frames' times use this clock."""
        return time.monotonic() - self.begun

    def frames(self) -> Iterator[Decoded]:
        """Yield frames until the camera ends. A thread reads without pause, however slowly they are taken."""
        ready: SimpleQueue[Decoded | None] = SimpleQueue()
        left, of_array = threading.Event(), import_av().VideoFrame.from_ndarray

        def read() -> None:
            while not left.is_set():
                is_read, image = self.capture.read()
                if not is_read or image is None:
                    break
                frame = of_array(np.ascontiguousarray(image[:, :, ::-1]), "rgb24")  # OpenCV's is BGR
                ready.put(Decoded(self.now(), 1 / self.rate, frame, lambda frame: frame))
            self.capture.release()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(read).add_done_callback(lambda _: ready.put(None))
            try:
                yield from iter(ready.get, None)
            finally:
                left.set()


def frames_in_memory(pictures: Iterable[np.ndarray], makers: Sequence[ClipMaker], rate: float) -> Window:
    """Return a window of all frames, RGB uint8 (height, width, 3), of an iterable. Raises VideoError."""
    if not 0 < rate < float("inf"):
        raise VideoError(f"no video has {rate} frames per second")
    frames: dict[int, dict] = {maker.short_side: {} for maker in makers}
    count = 0
    for count, picture in enumerate(pictures, 1):
        shape, kind = np.shape(picture), getattr(picture, "dtype", type(picture).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or not min(shape):
            raise VideoError(f"frame {count - 1} is {kind} {shape}, not RGB uint8 (height, width, 3)")
        for side, pictures_of_side in frames.items():
            pictures_of_side[count - 1] = scaled(picture, side)
    return Window(np.arange(count + 1) / rate, frames)


@dataclass(frozen=True)
class Clips:
    """The networks' input for one window, from `start` to `end` seconds."""

    start: float
    end: float
    frames: int  # of the window
    batches: dict[str, Batch]  # by stream, for those that the window is long enough for
    times: dict[str, np.ndarray]  # stream -> (samples,) seconds: the middle of each clip
    too_short: Sequence[str]  # an explanation for each of the other streams


def make_clips(window: Window, makers: Sequence[ClipMaker]) -> Clips:
    """Make each stream's clips of a window. Raises VideoError if it is too short for every stream."""
    able = [maker for maker in makers if window.count >= maker.fewest]
    too_short = [f"the video {maker.too_few(window.count)}" for maker in makers if maker not in able]
    if not able:
        raise VideoError(min(makers, key=lambda maker: maker.fewest).too_few(window.count))
    batches, times = {}, {}
    for maker in able:
        batches[maker.name] = maker.clips(window)
        middles = maker.starts(window.count) + maker.fewest / 2  # in frames of the window, possibly fractional
        times[maker.name] = np.interp(middles, np.arange(len(window.times)), window.times)
    return Clips(float(window.times[0]), float(window.times[-1]), window.count, batches, times, too_short)
