"""Clips of a video as it is decoded: the same as extraction and loaders make of it; windows; a camera."""

from __future__ import annotations

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
from data.videos import VideoError, decode
from dataloader.clips import ClipDataset
from dataloader.frames import ReadFlow, ReadFrame, find_sources, index_frames
from dataloader.lists import Video
from dataloader.packed import consecutive_runs
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling as Sampling  # pytest takes what is called Test for a test
from recogniser import windows
from recogniser.decoded import ClipMaker, DecodedFrames, Flow
from utils import InputError

SIDE = 64
SETTINGS = {"short_side": SIDE, "quality": 80, "sampling_rate": 3, "method": "dis", "bound": 12.0}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "walk.avi", 5)


def preparation_of(modality: str, settings: dict = SETTINGS, resize: str = "squash"):
    length = {"rgb": 1, "flow": 4, "rgbdiff": 3, "greydiff": 3}[modality]
    return default_preparation(modality, 48, resize, length).with_extraction(settings)


def follower_of(modality: str, sampling: Sampling, method=dis_flow, **kwargs) -> DecodedFrames:
    return DecodedFrames(ClipMaker(modality, preparation_of(modality, **kwargs), sampling, Flow(method, 2)), "walk.avi")


def batch_from_disk(video: Path, root: Path, preparation, sampling: Sampling):
    """What a loader makes of `video` after the project's own extraction."""
    folder = root / "v_Walk_g01_c01"
    quality, side = preparation.quality, preparation.short_side
    key = [Video("Walk_g01_c01", 0, "v_Walk_g01_c01")]
    if preparation.modality == "flow":
        for name in "uv":
            (root / "attempt" / name).mkdir(parents=True)
        write_flow(dis_flow, preparation.flow_bound, side, quality, video, root / "attempt")
        for name in "uv":
            (root / name).mkdir()
            (root / "attempt" / name).rename(root / name / folder.name)
        (root / "attempt").rmdir()
        sources, read = find_sources(index_frames(root, "flow"), key), ReadFlow(root)
    else:
        folder.mkdir()
        rate = preparation.sampling_rate if preparation.modality == "rgb" else 1
        write_rgb(side, quality, rate, video, folder)
        sources, read = find_sources(index_frames(root, "rgb"), key), ReadFrame(root)
    return ClipDataset(sources, read, preparation, sampling)[0, 0]


# --- the same as from disk -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "views", "resize", "starts"),
    [
        ("rgb", 1, "squash", "spread"), ("rgb", 10, "center", "tsn"), ("rgb", 1, "squash", "original"),
        ("flow", 1, "squash", "original"), ("flow", 10, "center", "tsn"),
        ("rgbdiff", 2, "squash", "spread"), ("greydiff", 10, "center", "spread"),
    ],
)  # fmt: skip
def test_clips_are_those_of_extracted_images(video, tmp_path, modality, views, resize, starts):
    follower = follower_of(modality, Sampling(7, views, starts), resize=resize)
    window = windows.whole_video(video, [follower])
    ours = follower.clips(window.frames[SIDE], window.count)
    theirs = batch_from_disk(video, tmp_path, follower.preparation, Sampling(7, views, starts, follower.rate))
    assert window.count == FRAMES
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.clips, theirs.clips)
    assert torch.equal(ours.flip, theirs.flip)
    if modality == "flow":  # as the checkpoints' authors had them
        tick = (FRAMES - 1 - 4 + 1) / 7
        theirs = {"original": [i * int((FRAMES - 10) / 7) for i in range(7)],
                  "tsn": [int(tick / 2 + tick * i) for i in range(7)]}  # fmt: skip
        assert follower.starts(FRAMES).tolist() == theirs[starts]


@pytest.mark.parametrize("claimed", [5, FRAMES, FRAMES + 9])
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


def test_only_the_frames_that_clips_need_are_kept(tmp_path):
    long = make_video(tmp_path / "long.avi", 1, frames=150)
    window = windows.whole_video(long, [follower_of("flow", Sampling(3))])
    expected = {start + offset for start in (0, 73, 145) for offset in range(5)}  # 149 pairs: starts 0..145
    assert set(window.frames[SIDE]) == expected


# --- rolling -------------------------------------------------------------------------------------------


def rolling(video: Path, seconds: float, fewest: int = 1):
    return windows.rolling_windows(windows.frames_in_file(video, [SIDE]), RATE, seconds, fewest)


def test_rolling_windows_are_whole_videos_by_themselves(video):
    """26 frames, windows of 10 every 5; the last frame is less than a quarter of a window from the end."""
    computed = []

    def method(frames):
        flows = list(dis_flow(frames))
        computed.extend(flows)
        return flows

    follower = follower_of("flow", Sampling(6), method)  # all 6 clips of 9 pairs
    spans = []
    for window in rolling(video, 0.4):
        assert len(window.frames[SIDE]) == 10  # no more than one window in memory
        clips = follower.clips(window.frames[SIDE], window.count, window.first)
        assert min(follower.images) >= window.first and len(follower.images) <= 9
        alone = {number - window.first: frame for number, frame in window.frames[SIDE].items()}
        fresh = follower_of("flow", Sampling(6)).clips(alone, window.count)
        assert torch.equal(clips.images, fresh.images) and torch.equal(clips.clips, fresh.clips)
        spans.append((window.first, round(window.start, 3), round(window.end, 3)))
    assert spans == [(0, 0.0, 0.4), (5, 0.2, 0.6), (10, 0.4, 0.8), (15, 0.6, 1.0)]
    assert len(computed) == 24  # each once, between the 25 frames of windows 0-9, 5-14, 10-19 and 15-24


def test_the_last_window_reaches_the_end(video):
    """26 frames, and windows that begin every half of their length; shorter than a window is one window."""
    firsts = {12: [0, 6, 12], 14: [0, 7, 12], 20: [0, 6], 9.9: [0, 5, 10, 15], 50: [0], 0.02: [*range(26)]}
    for frames, expected in firsts.items():
        rolled = list(rolling(video, frames / RATE))
        assert [window.first for window in rolled] == expected
        (count,) = {window.count for window in rolled}
        assert count == min(26, max(1, round(frames)))
        for window in rolled:
            np.testing.assert_allclose(window.times, np.arange(window.first, window.first + count + 1) / RATE)


def test_windows_go_by_time_stamps_where_the_rate_varies(tmp_path):
    """20 frames at 25 per second, then 8 at 2 per second. The file does not say how long the last one lasts."""
    stamps = [k / 25 for k in range(20)] + [0.8 + k / 2 for k in range(8)]
    film = write_film(tmp_path / "vfr.mp4", "mpeg4", stamps=[*stamps, 4.8])
    whole = windows.whole_video(film, [follower_of("rgb", Sampling(3))])
    np.testing.assert_allclose(whole.times, [*stamps, 4.34], atol=1e-3)
    assert whole.seconds(np.array([10, 20.5])).tolist() == pytest.approx([0.4, 1.05])
    found = [(round(w.start, 2), round(w.end, 2), w.count) for w in rolling(film, 0.4)]
    assert found[:3] == [(0.0, 0.4, 10), (0.2, 0.6, 10), (0.4, 0.8, 10)]
    assert all(end - start <= 0.41 and count <= 6 for start, end, count in found[3:]) and found[-1][0] == 4.3
    fewest = rolling(film, 0.4, fewest=6)
    assert [w.first for w in fewest] == [0, 5, 10, 15]  # where there are too few frames for a clip, nothing is answered
    (only,) = rolling(film, 0.4, fewest=50)
    assert only.count == 1  # to say of it that it has too few


def test_a_clip_needs_the_frames_of_its_steps():
    """TSN's stacks: L flow fields lie between L + 1 frames, and so do L differences."""
    fewest = {modality: follower_of(modality, Sampling(1)).fewest for modality in ("rgb", "flow", "rgbdiff")}
    assert fewest == {"rgb": 1, "flow": 5, "rgbdiff": 4}  # L of 4 and 3
    with pytest.raises(VideoError, match="has 4 frames, and one clip of the flow stream needs 5"):
        follower_of("flow", Sampling(1)).starts(4)


def test_what_a_checkpoint_does_not_say_of_extraction_is_its_default():
    unknown = follower_of("rgb", Sampling(1), settings={})
    assert (unknown.short_side, unknown.quality, unknown.rate) == (256, 90, 1)
    assert follower_of("rgb", Sampling(1), settings={"short_side": 0}).short_side == 0
    assert follower_of("rgb", Sampling(1)).rate == 3  # as SETTINGS says; flow and differences take every frame
    assert follower_of("flow", Sampling(1)).rate == follower_of("rgbdiff", Sampling(1)).rate == 1


def test_flow_is_asked_for_in_runs_of_consecutive_pairs():
    assert list(consecutive_runs([1, 2, 3, 7, 8, 20], 2)) == [[1, 2], [3], [7, 8], [20]]
    assert list(consecutive_runs([], 8)) == []


# --- a camera ------------------------------------------------------------------------------------------


class FakeCapture:
    """A camera of 10 frames per second by its own account, with a clock of its own: it takes 0.2 s for a frame.

    It gives frames of the gray values in `coming`; None ends it. `rushing` gives many, without end.
    """

    def __init__(self) -> None:
        self.coming: list = []
        self.now, self.released, self.rushing = 1000.0, False, False

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FPS: 10.0}[prop]

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True

    def read(self):
        if self.rushing:
            time.sleep(0.001)
        gray = 0 if self.rushing else self.coming.pop(0)
        self.now += 0.2
        return gray is not None, None if gray is None else np.full((96, 128, 3), gray, np.uint8)


@pytest.fixture
def capture(monkeypatch) -> FakeCapture:
    capture = FakeCapture()
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: capture)
    monkeypatch.setattr(windows, "time", SimpleNamespace(monotonic=lambda: capture.now))
    return capture


def test_a_cameras_frames_have_the_times_at_which_they_came(capture):
    capture.coming = [*range(5), None]
    frames = list(windows.Camera("3").frames([SIDE, 32]))
    np.testing.assert_allclose([second for second, *_ in frames], 0.2 * np.arange(1, 6))
    for gray, (_, lasts, pictures) in enumerate(frames):
        assert {side: (one.shape, one.min(), one.max()) for side, one in pictures.items()} == {
            SIDE: ((64, 85, 3), gray, gray), 32: ((32, 43, 3), gray, gray)
        }  # fmt: skip
        assert lasts == 0.1
    assert capture.released
    capture.coming = [None]
    assert list(windows.rolling_windows(windows.Camera("0").frames([SIDE]), 10, 1)) == []


def test_who_leaves_a_camera_stops_it(capture):
    capture.rushing = True
    frames = windows.Camera("0").frames([SIDE])
    next(frames)
    frames.close()
    assert capture.released


def test_what_goes_wrong_with_a_camera_is_told(capture, monkeypatch):
    capture.coming = ["no gray value"]
    with pytest.raises(ValueError, match="no gray value"):
        list(windows.Camera("0").frames([SIDE]))
    for header, taken in {float("nan"): 25.0, 0.9: 25.0, 1000.0: 1000.0}.items():
        monkeypatch.setattr(capture, "get", lambda _, rate=header: rate)
        assert windows.Camera("0").rate == taken
    monkeypatch.setattr(capture, "isOpened", lambda: False)
    with pytest.raises(InputError, match="--camera 7: no such camera"):
        windows.Camera("7")
