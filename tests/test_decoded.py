"""Clips of a video as it is decoded: the same as extraction and loaders make of it; windows; a camera."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")

from video_files import FRAMES, RATE, make_video, write_film

from data.extract_flow import write_flow
from data.extract_rgb import write_rgb
from data.flow import dis_flow
from data.videos import VideoError, decode, read_frames
from dataloader.clips import ClipDataset
from dataloader.frames import index_frames
from dataloader.images import ReadFlow, ReadFrame, find_sources
from dataloader.lists import Video
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling as Sampling  # pytest takes what is called Test for a test
from dataloader.sampling import consecutive_runs
from recogniser import windows
from recogniser.decoded import DecodedFrames, Flow
from utils import InputError

SIDE = 64
SETTINGS = {"short_side": SIDE, "quality": 80, "sampling_rate": 3, "method": "dis", "bound": 12.0}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "walk.avi", 5)


def preparation_of(modality: str, settings: dict = SETTINGS, resize: str = "squash"):
    length = {"rgb": 1, "flow": 4, "rgbdiff": 3, "greydiff": 3}[modality]
    return default_preparation(modality, 48, resize, length).with_extraction(settings)


def follower_of(modality: str, sampling: Sampling, **kwargs) -> DecodedFrames:
    return DecodedFrames("walk.avi", preparation_of(modality, **kwargs), sampling, Flow(dis_flow, 2))


def batch_from_disk(video: Path, root: Path, preparation, sampling: Sampling):
    """What a loader makes of `video` after the project's own extraction."""
    folder = root / "v_Walk_g01_c01"
    quality, side = preparation.quality, preparation.short_side
    key = [Video("Walk_g01_c01", 0, "v_Walk_g01_c01")]
    if preparation.modality == "flow":
        for name in "uv":
            (root / "attempt" / name).mkdir(parents=True)
        write_flow(dis_flow, preparation.flow_bound, side, quality, video, root / "attempt", lambda *_: None)
        for name in "uv":
            (root / name).mkdir()
            (root / "attempt" / name).rename(root / name / folder.name)
        (root / "attempt").rmdir()
        sources, read = find_sources(index_frames(root, "flow"), key), ReadFlow(root)
    else:
        folder.mkdir()
        rate = preparation.sampling_rate if preparation.modality == "rgb" else 1
        write_rgb(side, quality, rate, video, folder, lambda *_: None)
        sources, read = find_sources(index_frames(root, "rgb"), key), ReadFrame(root)
    return ClipDataset(sources, read, preparation, sampling)[0, 0]


# --- the same as from disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rgb", "flow", "rgbdiff", "greydiff"])
@pytest.mark.parametrize(("views", "resize"), [(1, "squash"), (10, "center")])
def test_clips_are_those_of_extracted_images(video, tmp_path, modality, views, resize):
    sampling = Sampling(7, views)
    follower = follower_of(modality, sampling, resize=resize)
    window = windows.whole_video(video, [follower])
    ours = follower.clips(window.frames[SIDE], window.count)
    theirs = batch_from_disk(video, tmp_path, follower.preparation, sampling)
    assert window.count == FRAMES
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.clips, theirs.clips)
    assert torch.equal(ours.flip, theirs.flip)


@pytest.mark.parametrize("starts", ["original", "tsn"])
@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_clips_begin_where_the_checkpoints_authors_had_them(video, tmp_path, modality, starts):
    follower = follower_of(modality, Sampling(3, starts=starts))
    window = windows.whole_video(video, [follower])
    ours = follower.clips(window.frames[SIDE], window.count)
    theirs = batch_from_disk(video, tmp_path, follower.preparation, Sampling(3, 1, starts, follower.rate))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.clips, theirs.clips)
    first = follower.starts(FRAMES)
    if starts == "original" and modality == "flow":
        assert first.tolist() == [i * int((FRAMES - 10) / 3) for i in range(3)]
    elif starts == "tsn" and modality == "flow":
        tick = (FRAMES - 1 - 4 + 1) / 3
        assert first.tolist() == [int(tick / 2 + tick * i) for i in range(3)]


def test_a_real_video_gives_the_clips_of_its_extracted_images(shared, tmp_path):
    clip = shared / "data/ucf101_clips/Biking/v_Biking_g01_c04.avi"
    settings = {**SETTINGS, "short_side": 128, "quality": 90, "sampling_rate": 10}
    for modality in ("rgb", "flow"):
        follower = follower_of(modality, Sampling(19), settings=settings)
        window = windows.whole_video(clip, [follower])
        ours = follower.clips(window.frames[128], window.count)
        (tmp_path / modality).mkdir()
        theirs = batch_from_disk(clip, tmp_path / modality, follower.preparation, Sampling(19))
        assert window.count == 181
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.clips, theirs.clips)


@pytest.mark.parametrize("claimed", [0, 5, FRAMES - 1, FRAMES, FRAMES + 9])
def test_a_wrong_number_of_packets_changes_nothing(video, monkeypatch, claimed):
    """A right one spares a second decoding."""
    follower = follower_of("flow", Sampling(4))
    honest = windows.whole_video(video, [follower]).frames[SIDE]
    decoded = []
    monkeypatch.setattr(windows, "count_frames", lambda path: claimed)
    monkeypatch.setattr(windows, "decode", lambda path: decoded.append(path) or decode(path))
    window = windows.whole_video(video, [follower])
    assert len(decoded) == 1 + (claimed != FRAMES)
    assert (window.first, window.count, window.start, window.end) == (0, FRAMES, 0, pytest.approx(FRAMES / RATE))
    assert window.frames[SIDE].keys() == honest.keys()
    assert all(np.array_equal(window.frames[SIDE][number], honest[number]) for number in honest)


def test_a_video_of_just_one_clip_is_enough(tmp_path):
    follower = follower_of("flow", Sampling(2))
    window = windows.whole_video(make_video(tmp_path / "five.avi", 2, frames=5), [follower])
    assert follower.clips(window.frames[SIDE], window.count).clips.tolist() == [[0, 1, 2, 3]] * 2


def test_only_the_frames_that_clips_need_are_kept(tmp_path):
    long = make_video(tmp_path / "long.avi", 1, frames=150)
    window = windows.whole_video(long, [follower_of("flow", Sampling(3))])
    expected = {start + offset for start in (0, 73, 145) for offset in range(5)}  # 149 pairs: starts 0..145
    assert set(window.frames[SIDE]) == expected


# --- rolling -------------------------------------------------------------------------------------------


def test_rolling_windows_are_whole_videos_by_themselves(video):
    rolling = follower_of("flow", Sampling(4))
    spans = []
    for window in windows.rolling_windows(video, [SIDE], 0.4, 0.2):
        assert len(window.frames[SIDE]) == 10  # no more than one window in memory
        clips = rolling.clips(window.frames[SIDE], window.count, window.first)
        assert min(rolling.images) >= window.first and len(rolling.images) <= 9
        alone = {number - window.first: frame for number, frame in window.frames[SIDE].items()}
        fresh = follower_of("flow", Sampling(4)).clips(alone, window.count)
        assert torch.equal(clips.images, fresh.images) and torch.equal(clips.clips, fresh.clips)
        spans.append((window.first, round(window.start, 3), round(window.end, 3)))
    # 26 frames, windows of 10 every 5; the last frame is less than half a step from the end
    assert spans == [(0, 0.0, 0.4), (5, 0.2, 0.6), (10, 0.4, 0.8), (15, 0.6, 1.0)]


def test_rolling_windows_compute_each_flow_once(video):
    computed = []

    def method(frames):
        flows = list(dis_flow(frames))
        computed.extend(flows)
        return flows

    follower = DecodedFrames("walk.avi", preparation_of("flow"), Sampling(6), Flow(method))  # all 6 clips of 9 pairs
    for window in windows.rolling_windows(video, [SIDE], 0.4, 0.2):
        follower.clips(window.frames[SIDE], window.count, window.first)
    assert len(computed) == 24  # between the 25 frames of windows 0-9, 5-14, 10-19 and 15-24


def test_the_last_window_reaches_the_end(video):
    def firsts(step: int) -> list[int]:
        """First frames of windows of 10 among 26 frames, one every `step` frames."""
        rolled = list(windows.rolling_windows(video, [SIDE], 10 / RATE, step / RATE))
        assert {window.count for window in rolled} == {10}
        for window in rolled:
            np.testing.assert_allclose(window.times, np.arange(window.first, window.first + 11) / RATE)
        return [window.first for window in rolled]

    assert firsts(8) == [0, 8, 16]
    assert firsts(6) == [0, 6, 12, 16]  # 4 frames were left, over half a step
    assert firsts(32) == [0]  # 16 left: half a step
    assert firsts(31) == [0, 16]
    assert firsts(7.9) == [0, 8, 16]  # to the nearest frame


def test_windows_go_by_time_stamps_where_the_rate_varies(tmp_path):
    """20 frames at 25 per second, then 8 at 2 per second. The file does not say how long the last one lasts."""
    stamps = [k / 25 for k in range(20)] + [0.8 + k / 2 for k in range(8)]
    film = write_film(tmp_path / "vfr.mp4", "mpeg4", stamps=[*stamps, 4.8])
    whole = windows.whole_video(film, [follower_of("rgb", Sampling(3))])
    np.testing.assert_allclose(whole.times, [*stamps, 4.34], atol=1e-3)
    assert whole.seconds(np.array([10, 20.5])).tolist() == pytest.approx([0.4, 1.05])
    found = [(round(w.start, 2), round(w.end, 2), w.count) for w in windows.rolling_windows(film, [SIDE], 0.4, 0.4)]
    assert found[:2] == [(0.0, 0.4, 10), (0.4, 0.8, 10)]
    assert [start for start, _, _ in found[2:]] == [0.8, 1.3, 1.8, 2.3, 2.8, 3.3, 3.8, 4.3]
    assert {count for _, _, count in found[2:]} == {1} and all(end - start <= 0.41 for start, end, _ in found)
    fewest = windows.rolling_windows(film, [SIDE], 0.4, 0.4, fewest=5)
    assert [w.first for w in fewest] == [0, 10]  # where there are too few frames for a clip, nothing is answered
    (only,) = windows.rolling_windows(film, [SIDE], 0.4, 0.4, fewest=50)
    assert only.count == 1  # to say of it that it has too few


def test_a_short_video_is_one_window(video):
    for step in (1, 60):
        (short,) = windows.rolling_windows(video, [SIDE], 9, step)
        assert (short.first, short.count, short.start, short.end) == (0, FRAMES, 0, pytest.approx(FRAMES / RATE))


def test_no_window_is_shorter_than_a_frame(video, tmp_path):
    every = [(window.first, window.count) for window in windows.rolling_windows(video, [SIDE], 1e-3, 1e-3)]
    assert every == [(number, 1) for number in range(FRAMES)]
    picture = make_video(tmp_path / "picture.avi", 0, frames=1)
    assert [window.count for window in windows.rolling_windows(picture, [SIDE], 1, 1)] == [1]


@pytest.mark.parametrize(
    ("header", "taken"), [(0.0, 25.0), (float("nan"), 25.0), (0.9, 25.0), (1.0, 1.0), (1000.0, 1000.0), (1001.0, 25.0)]
)
def test_a_camera_without_a_usable_frame_rate_has_25(header, taken, monkeypatch):
    capture = SimpleNamespace(get=lambda _: header, isOpened=lambda: True)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: capture)
    assert windows.Camera("0", [SIDE]).rate == taken


def test_a_clip_needs_the_frames_of_its_steps():
    """TSN's stacks: L flow fields lie between L + 1 frames, and so do L differences."""
    fewest = {modality: follower_of(modality, Sampling(1)).fewest for modality in ("rgb", "flow", "rgbdiff")}
    assert fewest == {"rgb": 1, "flow": 5, "rgbdiff": 4}  # L of 4 and 3
    with pytest.raises(VideoError, match="has 4 frames, and one clip of the flow network needs 5"):
        follower_of("flow", Sampling(1)).starts(4)
    thirds = follower_of("rgb", Sampling(1))  # of every third frame, as SETTINGS says
    thirds.preparation = dataclasses.replace(thirds.preparation, stack_length=4)
    assert thirds.fewest == 10 and thirds.needed(10) == [0, 3, 6, 9]


def test_what_a_checkpoint_does_not_say_of_extraction_is_its_default():
    unknown = follower_of("flow", Sampling(1), settings={})
    assert (unknown.short_side, unknown.quality, unknown.bound, unknown.rate) == (256, 90, 20.0, 1)
    assert follower_of("rgb", Sampling(1), settings={}).rate == 1
    assert follower_of("rgb", Sampling(1), settings={"short_side": 0}).short_side == 0
    assert follower_of("rgb", Sampling(1)).rate == 3  # as SETTINGS says; flow and differences take every frame
    assert follower_of("flow", Sampling(1)).rate == follower_of("rgbdiff", Sampling(1)).rate == 1


def test_flow_is_asked_for_in_runs_of_consecutive_pairs():
    assert list(consecutive_runs([1, 2, 3, 7, 8, 20], 2)) == [[1, 2], [3], [7, 8], [20]]
    assert list(consecutive_runs([4, 5, 6], 8)) == [[4, 5, 6]]
    assert list(consecutive_runs([], 8)) == []


def test_a_camera_gives_windows_until_it_ends(video):
    found = list(windows.Camera(str(video), [SIDE]).windows(0.4, 0.2))
    assert found and all(window.count == 10 and len(window.frames[SIDE]) == 10 for window in found)
    assert all(one.first + 5 <= two.first for one, two in itertools.pairwise(found))
    pictures = [cv2.resize(f, (85, 64), interpolation=cv2.INTER_AREA) for f in read_frames(video)]
    for number, frame in found[0].frames[SIDE].items():
        assert np.array_equal(frame, pictures[number])


class Clock:
    """In place of the module time: seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(windows, "time", clock)
    return clock


class FakeCapture:
    """A camera of 10 frames per second by its own account. It gives a frame of this gray value when a test puts one
    into `coming`, and takes `pause` seconds for each; None ends it. `rushing` gives many without being asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.coming, self.pause = clock, queue.Queue(), 0.2
        self.opened, self.released, self.rushing, self.given = None, False, False, 0

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FPS: 10.0}[prop]

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True

    def read(self):
        if self.rushing:
            time.sleep(0.001)
            gray = 0 if self.given < 2000 else None
        else:
            gray = self.coming.get(timeout=20)
        self.given += 1
        self.clock.now += self.pause
        return gray is not None, None if gray is None else np.full((96, 128, 3), gray, np.uint8)


@pytest.fixture
def capture(monkeypatch, clock) -> FakeCapture:
    capture = FakeCapture(clock)

    def opened(source):
        capture.opened = source
        return capture

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    return capture


def test_a_file_is_played_at_its_own_speed(video, clock):
    (whole,) = windows.Camera(str(video), [SIDE]).windows(FRAMES / RATE, 1)
    assert (whole.first, whole.count) == (0, FRAMES)
    np.testing.assert_allclose(whole.times, np.arange(FRAMES + 1) / RATE, atol=1e-6)


def test_a_cameras_windows_have_its_real_rate(capture):
    """A window of 0.4 s is four frames at the 10 per second that it promises, and 0.24 s are two; it gives 5."""
    found = windows.Camera("3", [SIDE, 32]).windows(0.4, 0.24)
    for grays, first in (((0, 1, 2, 3), 0), ((4, 5), 2), ((6, 7), 4)):
        for gray in grays:
            capture.coming.put(gray)
        window = next(found)
        assert (window.first, window.count) == (first, 4)
        # frame n is seen at 0.2 (n + 1) s, and the last one stands for the tenth of a second after it
        np.testing.assert_allclose((window.start, window.end), (0.2 * (first + 1), 0.2 * (first + 4) + 0.1))
        for side, shape in ((SIDE, (64, 85, 3)), (32, (32, 43, 3))):
            shown = {number: (frame.shape, frame.min(), frame.max()) for number, frame in window.frames[side].items()}
            assert shown == {number: (shape, number, number) for number in range(first, first + 4)}
    capture.coming.put(None)
    assert list(found) == []
    assert capture.opened == 3 and capture.released


def test_a_camera_is_read_as_fast_as_it_gives(capture):
    capture.pause = 0.05  # twice the frames that it promises
    for gray in (0, 1, 2, None):
        capture.coming.put(gray)
    (window,) = windows.Camera("0", [SIDE]).windows(1, 1)
    np.testing.assert_allclose(window.times[:3], (0.05, 0.1, 0.15))


def test_no_window_of_a_camera_is_shorter_than_a_frame(capture):
    found = windows.Camera("0", [SIDE]).windows(1e-3, 1e-3)
    for number in range(3):
        capture.coming.put(number)
        window = next(found)
        assert (window.first, window.count) == (number, 1)
    capture.coming.put(None)
    assert list(found) == []


def test_a_camera_that_ends_early_gives_one_short_window_and_none_without_a_frame(capture):
    for gray in (0, 1, 2, None, None):
        capture.coming.put(gray)
    for expected in ([(0, 3)], []):
        assert [(window.first, window.count) for window in windows.Camera("0", [SIDE]).windows(1, 0.1)] == expected


def test_who_leaves_a_camera_stops_it(capture):
    found = windows.Camera("0", [SIDE]).windows(0.1, 0.1)
    capture.coming.put(0)
    next(found)
    capture.rushing = True
    capture.coming.put(1)
    found.close()
    assert capture.released and capture.given < 2000


def test_what_goes_wrong_with_a_camera_is_one_line(video, tmp_path):
    whole = video.read_bytes()
    cut_off = tmp_path / "cut.avi"
    cut_off.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"--camera .*cut\.avi: cut off"):
        list(windows.Camera(str(cut_off), [SIDE]).windows(0.4, 0.2))
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(InputError, match="cannot be opened"):
        windows.Camera(str(tmp_path / "text.avi"), [SIDE])


def test_an_error_in_the_cameras_thread_is_raised(capture):
    capture.coming.put("no gray value")
    with pytest.raises(ValueError, match="no gray value"):
        list(windows.Camera("0", [SIDE]).windows(0.4, 0.2))
