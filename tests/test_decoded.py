"""Clips of a video as it is decoded: the same as extraction and loaders make of it; windows."""

import itertools
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from video_files import FRAMES, RATE, extract, make_video, paint, write_film

from data.flow import dis_flow
from data.videos import VideoError, decode
from dataloader.clips import ClipDataset
from dataloader.frames import ReadFlow, ReadFrame, find_sources
from dataloader.layouts import index_frames
from dataloader.lists import Video
from dataloader.packed import consecutive_runs
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling as Sampling  # pytest takes what is called Test for a test
from recogniser import clips as windows
from recogniser.clips import ClipMaker, Flow
from report import gallery
from utils import InputError

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
    kind = "flow" if preparation.modality == "flow" else "rgb"
    flags = ("--method", "dis", "--bound", 12) if kind == "flow" else ("--sampling-rate", sampling.every)
    extract(kind, video.parent, root, "--short-side", SIDE, "--quality", 80, *flags)
    sources = find_sources(index_frames(root, kind), [Video("walk", 0, "walk")])
    read = ReadFlow(root) if kind == "flow" else ReadFrame(root)
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


def test_where_the_size_changes_within_a_film_the_first_holds(tmp_path):
    """In clips, as in extraction, in windows, and in the report's picture of flow."""
    film = tmp_path / "films/walk.mjpeg"
    film.parent.mkdir()
    pictures = [paint(number, (176, 144) if number < FRAMES // 2 else (96, 160)) for number in range(FRAMES)]
    film.write_bytes(b"".join(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures))
    for modality in ("rgb", "flow"):
        maker = maker_of(modality, Sampling(7))
        theirs = batch_from_disk(film, tmp_path / modality, maker.preparation, Sampling(7, every=maker.rate))
        assert torch.equal(maker.clips(windows.whole_video(film, [maker])).images, theirs.images)
        assert len({one.shape for window in sliding(film, maker, 0.6) for one in window.frames[SIDE].values()}) == 1
    assert gallery.see("walk", None, None, str(film)).flow


@pytest.mark.parametrize("claimed", [5, FRAMES, FRAMES + 9])
def test_a_wrong_number_of_packets_changes_nothing(video, monkeypatch, claimed):
    """A right one spares a second decoding."""
    maker = maker_of("flow", Sampling(4))
    honest = windows.whole_video(video, [maker]).frames[SIDE]
    decoded = []
    monkeypatch.setattr(windows, "count_frames", lambda path: claimed)
    monkeypatch.setattr(windows, "decode", lambda path: decoded.append(path) or decode(path))
    window = windows.whole_video(video, [maker])
    assert len(decoded) == 1 + (claimed != FRAMES) and window.count == FRAMES
    assert (window.times[0], window.times[-1]) == (0, pytest.approx(FRAMES / RATE))
    assert window.frames[SIDE].keys() == honest.keys()
    assert all(np.array_equal(window.frames[SIDE][number], honest[number]) for number in honest)


def test_only_the_frames_that_clips_need_are_kept(tmp_path):
    long = make_video(tmp_path / "long.avi", 1, frames=150)
    window = windows.whole_video(long, [maker_of("flow", Sampling(3))])
    expected = {start + offset for start in (0, 73, 145) for offset in range(5)}  # 149 pairs: starts 0..145
    assert set(window.frames[SIDE]) == expected


# --- windows -------------------------------------------------------------------------------------------


def sliding(film, maker, seconds):
    return list(windows.sliding_windows(decode(film), RATE, [maker], seconds))


def test_windows_are_whole_videos_by_themselves(video, tmp_path):
    """26 frames; each window begins half its length later. One frame more than the last window is no new one."""
    maker = maker_of("flow", Sampling(6))
    whole = windows.whole_video(video, [replace(maker, sampling=Sampling(26))])  # has every frame
    for seconds, firsts in {0.4: [0, 5, 10, 15], 0.8: [0, 10], 5: [0]}.items():
        parts = list(sliding(video, maker, seconds))
        assert [round(part.times[0] * RATE) for part in parts] == firsts
        for first, part in zip(firsts, parts, strict=True):
            np.testing.assert_allclose(part.times, np.arange(first, first + part.count + 1) / RATE)
            assert list(part.frames[SIDE]) == list(range(part.count))
            assert all(np.array_equal(part.frames[SIDE][n], whole.frames[SIDE][first + n]) for n in range(part.count))
    (only,) = sliding(video, maker, 0.04)
    assert only.count == 1  # to say of it that it has too few frames


def test_times_are_those_of_the_time_stamps_where_the_rate_varies(tmp_path):
    """20 frames at 25 per second, then 8 at 2 per second. The file does not say how long the last one lasts."""
    stamps = [k / 25 for k in range(20)] + [0.8 + k / 2 for k in range(8)]
    film = write_film(tmp_path / "vfr.mp4", "mpeg4", stamps=[*stamps, 4.8])
    maker = maker_of("rgb", Sampling(3))
    whole = windows.whole_video(film, [maker])
    np.testing.assert_allclose(whole.times, [*stamps, 4.34], atol=1e-3)
    middles = windows.make_clips(whole, [maker]).times["rgb"]  # of frames 0, 13.5 (its first is 13), and 27
    np.testing.assert_allclose(middles, [0.02, 0.62, 4.32], atol=0.13)
    parts = [(part.times[0].round(2), part.count) for part in sliding(film, maker, 0.4)]
    assert parts[:3] == [(0.0, 10), (0.2, 10), (0.4, 10)] and {count for _, count in parts[4:]} == {1}
    flow = sliding(film, maker_of("flow", Sampling(1)), 0.4)
    assert [part.times[0].round(2) for part in flow] == [0.0, 0.2, 0.4, 0.6]  # else too few frames for a clip


@pytest.mark.parametrize(("coming", "taken"), [(5, 5), (10**9, 3)])
def test_a_cameras_frames_come_with_times_until_it_ends_or_is_left(monkeypatch, tmp_path, coming, taken):
    """A camera of 10 frames per second by its own account; frame k is gray level k, and `coming` frames come."""
    frames = ((k <= coming, np.full((64, 86, 3), k % 256, np.uint8)) for k in itertools.count(1))
    capture = mock.Mock(**{"get.return_value": 10.0, "read.side_effect": frames})
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture)
    camera = windows.Camera("3")
    frames = camera.frames()
    seen = [next(frames) for _ in range(taken)]
    assert [one.picture()[0, 0].tolist() for one in seen] == [[k] * 3 for k in range(1, taken + 1)]
    assert all(a.seconds <= b.seconds <= camera.now() and b.lasts == 0.1 for a, b in itertools.pairwise(seen))
    assert coming > 5 or list(frames) == []
    frames.close()
    assert capture.release.called
    (tmp_path / "a.avi").touch()
    with pytest.raises(InputError, match="is a file: name it as a VIDEO"):
        windows.Camera(str(tmp_path / "a.avi"))


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
