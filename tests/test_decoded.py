"""Clips of a video as it is decoded: the same as extraction and loaders make of it; windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
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
from recogniser import clips as windows
from recogniser.clips import ClipMaker, Flow

SIDE = 64
SETTINGS = {"short_side": SIDE, "quality": 80, "sampling_rate": 3, "method": "dis", "bound": 12.0}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "walk.avi", 5)


def preparation_of(modality: str, settings: dict = SETTINGS, resize: str = "squash"):
    length = {"rgb": 1, "flow": 4, "rgbdiff": 3, "greydiff": 3}[modality]
    return default_preparation(modality, 48, resize, length).with_extraction(settings)


def maker_of(modality: str, sampling: Sampling, method=dis_flow, **kwargs) -> ClipMaker:
    flow = Flow(method, 2) if modality == "flow" else None
    return ClipMaker(modality, preparation_of(modality, **kwargs), sampling, flow)


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
    maker = maker_of(modality, Sampling(7, views, starts), resize=resize)
    window = windows.whole_video(video, [maker])
    ours = maker.clips(window)
    theirs = batch_from_disk(video, tmp_path, maker.preparation, Sampling(7, views, starts, maker.rate))
    assert window.count == FRAMES
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.clips, theirs.clips)
    assert torch.equal(ours.flip, theirs.flip)
    if modality == "flow":  # as the checkpoints' authors had them
        tick = (FRAMES - 1 - 4 + 1) / 7
        theirs = {"original": [i * int((FRAMES - 10) / 7) for i in range(7)],
                  "tsn": [int(tick / 2 + tick * i) for i in range(7)]}  # fmt: skip
        assert maker.starts(FRAMES).tolist() == theirs[starts]


@pytest.mark.parametrize("claimed", [5, FRAMES, FRAMES + 9])
def test_a_wrong_number_of_packets_changes_nothing(video, monkeypatch, claimed):
    """A right one spares a second decoding."""
    maker = maker_of("flow", Sampling(4))
    honest = windows.whole_video(video, [maker]).frames[SIDE]
    decoded = []
    monkeypatch.setattr(windows, "count_frames", lambda path: claimed)
    monkeypatch.setattr(windows, "decode", lambda path: decoded.append(path) or decode(path))
    window = windows.whole_video(video, [maker])
    assert len(decoded) == 1 + (claimed != FRAMES)
    assert (window.first, window.count) == (0, FRAMES)
    assert (window.times[0], window.times[-1]) == (0, pytest.approx(FRAMES / RATE))
    assert window.frames[SIDE].keys() == honest.keys()
    assert all(np.array_equal(window.frames[SIDE][number], honest[number]) for number in honest)


def test_only_the_frames_that_clips_need_are_kept(tmp_path):
    long = make_video(tmp_path / "long.avi", 1, frames=150)
    window = windows.whole_video(long, [maker_of("flow", Sampling(3))])
    expected = {start + offset for start in (0, 73, 145) for offset in range(5)}  # 149 pairs: starts 0..145
    assert set(window.frames[SIDE]) == expected


# --- rolling -------------------------------------------------------------------------------------------


def test_rolling_windows_are_whole_videos_by_themselves(video):
    """26 frames, windows of 10 every 5; the last frame is less than a quarter of a window from the end."""
    computed = []

    def method(frames):
        flows = list(dis_flow(frames))
        computed.extend(flows)
        return flows

    maker, fresh = maker_of("flow", Sampling(6), method), maker_of("flow", Sampling(6))  # all 6 clips of 9 pairs
    spans, made = [], {}
    for window in windows.rolling_windows(video, [maker], 0.4):
        assert len(window.frames[SIDE]) == 10  # no more than one window in memory
        clips = maker.clips(window, made)
        assert min(made) >= window.first and len(made) <= 9
        moved = {number - window.first: frame for number, frame in window.frames[SIDE].items()}
        alone = fresh.clips(windows.Window(0, window.times, {SIDE: moved}))
        assert torch.equal(clips.images, alone.images) and torch.equal(clips.clips, alone.clips)
        spans.append((window.first, *window.times[[0, -1]].round(3)))
    assert spans == [(0, 0.0, 0.4), (5, 0.2, 0.6), (10, 0.4, 0.8), (15, 0.6, 1.0)]
    assert len(computed) == 24  # each once, between the 25 frames of windows 0-9, 5-14, 10-19 and 15-24


def test_the_last_window_reaches_the_end(video):
    """26 frames, and windows that begin every half of their length; shorter than a window is one window."""
    firsts = {12: [0, 6, 12], 14: [0, 7, 12], 20: [0, 6], 9.9: [0, 5, 10, 15], 50: [0], 0.02: [*range(26)]}
    for frames, expected in firsts.items():
        rolled = list(windows.rolling_windows(video, [maker_of("rgb", Sampling(1))], frames / RATE))
        assert [window.first for window in rolled] == expected
        (count,) = {window.count for window in rolled}
        assert count == min(26, max(1, round(frames)))
        for window in rolled:
            np.testing.assert_allclose(window.times, np.arange(window.first, window.first + count + 1) / RATE)
            assert [*window.frames[SIDE]] == [*range(window.first, window.first + count)]


def test_times_are_those_of_the_time_stamps_where_the_rate_varies(tmp_path):
    """20 frames at 25 per second, then 8 at 2 per second. The file does not say how long the last one lasts."""
    stamps = [k / 25 for k in range(20)] + [0.8 + k / 2 for k in range(8)]
    film = write_film(tmp_path / "vfr.mp4", "mpeg4", stamps=[*stamps, 4.8])
    maker = maker_of("rgb", Sampling(3))
    whole = windows.whole_video(film, [maker])
    np.testing.assert_allclose(whole.times, [*stamps, 4.34], atol=1e-3)
    middles = windows.make_clips(whole, [maker]).times["rgb"]  # of frames 0, 13.5 (its first is 13), and 27
    np.testing.assert_allclose(middles, [0.02, 0.62, 4.32], atol=0.13)
    rolled = list(windows.rolling_windows(film, [maker], 0.4))
    found = [(window.times[0].round(2), window.times[-1].round(2), window.count) for window in rolled]
    assert found[:3] == [(0.0, 0.4, 10), (0.2, 0.6, 10), (0.4, 0.8, 10)]
    assert found[3][1:] == (1.3, 6) and all(count == 1 for *_, count in found[5:]) and found[-1][0] == 4.3
    flow = windows.rolling_windows(film, [maker_of("flow", Sampling(1))], 0.4)
    assert [window.first for window in flow] == [0, 5, 10, 15]  # where there are too few frames for a clip, none


def test_a_clip_needs_the_frames_of_its_steps():
    """TSN's stacks: L flow fields lie between L + 1 frames, and so do L differences."""
    fewest = {modality: maker_of(modality, Sampling(1)).fewest for modality in ("rgb", "flow", "rgbdiff")}
    assert fewest == {"rgb": 1, "flow": 5, "rgbdiff": 4}  # L of 4 and 3
    with pytest.raises(VideoError, match="has 4 frames, and one clip of the flow stream needs 5"):
        maker_of("flow", Sampling(1)).starts(4)


def test_what_a_checkpoint_does_not_say_of_extraction_is_its_default():
    unknown = maker_of("rgb", Sampling(1), settings={})
    assert (unknown.short_side, unknown.quality, unknown.rate) == (256, 90, 1)
    assert maker_of("rgb", Sampling(1), settings={"short_side": 0}).short_side == 0
    assert maker_of("rgb", Sampling(1)).rate == 3  # as SETTINGS says; flow and differences take every frame
    assert maker_of("flow", Sampling(1)).rate == maker_of("rgbdiff", Sampling(1)).rate == 1


def test_flow_is_asked_for_in_runs_of_consecutive_pairs():
    assert list(consecutive_runs([1, 2, 3, 7, 8, 20], 2)) == [[1, 2], [3], [7, 8], [20]]
    assert list(consecutive_runs([], 8)) == []
