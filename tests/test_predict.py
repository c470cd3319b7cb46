"""predict.py: the same images and logits as extraction, loaders and --evaluate make; windows, camera, films, errors."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

cv2 = pytest.importorskip("cv2")

import predict
from data.extract_flow import write_flow
from data.extract_rgb import write_rgb
from data.flow import dis_flow
from data.videos import VideoError, read_frames
from dataloader import windows
from dataloader.clips import ClipDataset
from dataloader.clips import TestSampling as Sampling  # pytest takes what is called Test for a test
from dataloader.decoded import DecodedFrames, Flow
from dataloader.layouts import index_frames
from dataloader.motion_dataloader import ReadFlow, motion_sources
from dataloader.names import UCF101_CLASSES
from dataloader.sampling import consecutive_runs
from dataloader.spatial_dataloader import ReadFrame, spatial_sources
from dataloader.splits import Video
from dataloader.transforms import default_preparation
from report.answers import Answer
from report.overlay import Caption, Scores, draw
from utils import InputError

FRAMES, RATE = 26, 25
SIDE = 64
SETTINGS = {"short_side": SIDE, "quality": 80, "sampling_rate": 3, "method": "dis", "bound": 12.0}


def make_video(path: Path, seed: int, frames: int = FRAMES, size: tuple[int, int] = (128, 96)) -> Path:
    """A textured square that moves over a textured ground, as Motion JPEG."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
    square = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    step = rng.integers(1, 3, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, size)
    for number in range(frames):
        x, y = number * step % (np.array(size) - 24)
        image = ground.copy()
        image[y : y + 24, x : x + 24] = square
        writer.write(image)
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "walk.avi", 5)


def preparation_of(modality: str, settings: dict = SETTINGS, resize: str = "squash"):
    length = {"rgb": 1, "flow": 4, "rgbdiff": 3}[modality]
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
        sources, read = motion_sources(index_frames(root, "flow"), key), ReadFlow(root)
    else:
        folder.mkdir()
        rate = preparation.sampling_rate if preparation.modality == "rgb" else 1
        write_rgb(side, quality, rate, video, folder, lambda *_: None)
        sources, read = spatial_sources(index_frames(root, "rgb"), key), ReadFrame(root)
    return ClipDataset(sources, read, preparation, sampling)[0, 0]


# --- the same as from disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rgb", "flow", "rgbdiff"])
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


@pytest.mark.parametrize("claimed", [0, 5, FRAMES - 1, FRAMES + 9])
def test_a_wrong_frame_count_in_the_header_changes_nothing(video, monkeypatch, claimed):
    follower = follower_of("flow", Sampling(4))
    honest = windows.whole_video(video, [follower]).frames[SIDE]

    def lying(path, short_side=0, every=1, claim=None):
        if claimed:
            claim(claimed)
        yield from read_frames(path, short_side, every)

    monkeypatch.setattr(windows, "read_frames", lying)
    window = windows.whole_video(video, [follower])
    assert window.count == FRAMES and window.frames[SIDE].keys() == honest.keys()
    assert all(np.array_equal(window.frames[SIDE][number], honest[number]) for number in honest)


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


def test_the_last_window_reaches_the_end_and_a_short_video_is_one(video):
    def firsts(step: int) -> list[int]:
        """First frames of windows of 10 among 26 frames, one every `step` frames."""
        rolled = list(windows.rolling_windows(video, [SIDE], 10 / RATE, step / RATE))
        assert {window.count for window in rolled} == {10}
        return [window.first for window in rolled]

    assert firsts(8) == [0, 8, 16]
    assert firsts(6) == [0, 6, 12, 16]  # 4 frames were left, over half a step
    assert firsts(32) == [0]  # 16 left: half a step
    assert firsts(31) == [0, 16]
    (short,) = windows.rolling_windows(video, [SIDE], 9, 1)
    assert (short.first, short.count, short.start, short.end) == (0, FRAMES, 0, FRAMES / RATE)


@pytest.mark.parametrize(
    ("header", "taken"), [(0.0, 25.0), (float("nan"), 25.0), (0.9, 25.0), (1.0, 1.0), (1000.0, 1000.0), (1001.0, 25.0)]
)
def test_a_header_without_a_usable_frame_rate_means_25(header, taken, video, monkeypatch):
    capture = SimpleNamespace(get=lambda _: header, isOpened=lambda: True, release=lambda: None)
    fake = SimpleNamespace(VideoCapture=lambda _: capture, CAP_PROP_FPS=cv2.CAP_PROP_FPS)
    monkeypatch.setattr(windows, "import_cv2", lambda: fake)
    assert windows.frame_rate(video) == windows.Camera("0", [SIDE]).rate == taken


def test_a_clip_needs_the_frames_of_its_steps():
    """TSN's stacks: L flow fields lie between L + 1 frames, and so do L differences."""
    fewest = {modality: follower_of(modality, Sampling(1)).fewest for modality in ("rgb", "flow", "rgbdiff")}
    assert fewest == {"rgb": 1, "flow": 5, "rgbdiff": 4}  # L of 4 and 3


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
    seen = []
    camera = windows.Camera(str(video), [SIDE])
    found = list(camera.windows(0.4, 0.2, lambda frame, now: seen.append((frame.shape, now))))
    assert found and all(window.count == 10 and len(window.frames[SIDE]) == 10 for window in found)
    assert all(one.first + 5 <= two.first for one, two in itertools.pairwise(found))
    assert len(seen) == FRAMES and {shape for shape, _ in seen} == {(96, 128, 3)}
    assert [now for _, now in seen] == sorted(now for _, now in seen)
    first = found[0]
    pictures = [cv2.resize(f, (85, 64), interpolation=cv2.INTER_AREA) for f in read_frames(video)]
    for number, frame in first.frames[SIDE].items():
        assert np.array_equal(frame, pictures[number])


def test_an_error_in_the_cameras_thread_is_raised(video):
    def fail(frame, now):
        raise InputError("disk full")

    with pytest.raises(InputError, match="disk full"):
        list(windows.Camera(str(video), [SIDE]).windows(0.4, 0.2, fail))


# --- answers -------------------------------------------------------------------------------------------


def test_fused_is_the_softmax_of_the_weighted_mean_of_mean_logits():
    rng = np.random.default_rng(0)
    logits = {"spatial": rng.normal(size=(4, 6)), "motion": rng.normal(size=(3, 6))}
    times = {"spatial": np.arange(4.0), "motion": np.arange(3.0)}
    answer = Answer(list("abcdef"), 0.0, 4.0, 100, logits, times, [1.0, 3.0])
    mean = (logits["spatial"].mean(0) + 3 * logits["motion"].mean(0)) / 4
    expected = np.exp(mean) / np.exp(mean).sum()
    np.testing.assert_allclose(answer.opinions()["fused"], expected, rtol=1e-5)
    when, over_time = answer.over_time()
    middle = (logits["spatial"][1] + 3 * logits["motion"][1]) / 4  # both streams have a clip at 1 s
    np.testing.assert_allclose(over_time[list(when).index(1.0)], np.exp(middle) / np.exp(middle).sum(), rtol=1e-5)


class FakeCheckpoint:
    def __init__(self, path, classes, names=None):
        self.path, self.num_classes, self.class_names = path, classes, names


def test_class_names_come_from_where_they_are_known(tmp_path, capsys):
    own = FakeCheckpoint("own.pth", 2, ["run", "walk"])
    foreign = FakeCheckpoint("foreign.pth", 2)
    assert predict.choose_class_names([own, foreign], None) == ["run", "walk"]
    assert predict.choose_class_names([FakeCheckpoint("original.pth", 101)], None) == list(UCF101_CLASSES)
    assert predict.choose_class_names([foreign], None) == ["class 0", "class 1"]
    assert "foreign.pth doesn't name its 2 classes" in capsys.readouterr().err
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"jump/{name}1.avi\nsit/{name}2.avi\n")
    assert predict.choose_class_names([foreign], str(tmp_path)) == ["jump", "sit"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (FakeCheckpoint("b.pth", 2, ["walk", "run"]), "class 0 is run in a.pth and walk in b.pth"),
        (FakeCheckpoint("b.pth", 3, list("abc")), "a.pth knows 2 classes, b.pth 3"),
    ],
)
def test_streams_of_different_classes_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        predict.choose_class_names([FakeCheckpoint("a.pth", 2, ["run", "walk"]), other], None)


# --- drawing -------------------------------------------------------------------------------------------


def test_the_strip_shows_scores_over_time():
    walk = np.array([1.0, 1, 0, 0])
    times = np.array([0, 4.9, 5.1, 10])
    scores = Scores(["walk", "run"], times, np.stack([walk, 1 - walk], 1), [0.5, 0.5], (0, 10))
    picture = np.full((240, 320, 3), 77, np.uint8)
    drawn = draw(picture, Caption("walk 50 %"), scores, now=2.5)
    assert drawn.shape[1] == 640 and drawn.shape[0] % 2 == 0 and drawn.dtype == np.uint8
    assert (drawn[300:470] == 77).all()  # the picture, untouched but for the caption
    assert (drawn[20:60, 20:200] != 77).any()
    strip = drawn[480:].astype(int)
    orange = (strip[:, :, 0] - strip[:, :, 2] > 60).sum(0)  # walk's colour
    blue = (strip[:, :, 2] - strip[:, :, 0] > 60).sum(0)
    assert np.median(orange[120:250]) > 15 > 4 > orange[400:550].max()
    assert np.median(blue[400:550]) > 15 > 4 > blue[120:250].max()
    columns = np.flatnonzero((strip[8:60] > 225).all(2).mean(0) > 0.8)  # the playhead, a quarter along the strip
    without = draw(picture, Caption("walk 50 %"), scores)[480:]
    assert len(columns) and 120 < columns.mean() < 250 and not ((without[8:60] > 225).all(2).mean(0) > 0.8).any()


# --- the script ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, run) -> Path:
    """Four videos of two classes: extracted, both streams trained a little and tested, by the scripts."""
    root = tmp_path_factory.mktemp("prepared")
    for seed, name in enumerate(("walk/a.avi", "walk/b.avi", "run/a.avi", "run/b.avi")):
        make_video(root / "videos" / name, seed)
    for name, letter in (("train", "a"), ("test", "b")):
        (root / f"{name}.txt").write_text(f"run/{letter}.avi\nwalk/{letter}.avi\n")
    side = ("--short-side", SIDE, "--workers", 1)
    run("data/extract_rgb.py", root / "videos", root / "rgb", *side, "--quality", 80, "--sampling-rate", 3)
    run("data/extract_flow.py", root / "videos", root / "flow", *side, "--method", "dis", "--bound", 12)
    common = ("--ucf-list", root, "--workers", 0, "--device", "cpu", "--amp", "off", "--output")
    rounds = ("--epochs", 8, "--eval-every", 8, "--lr", 0.02)  # until different videos have different logits
    train = ("--arch", "resnet18", "--weights", "none", "--size", 64, "--batch-size", 2, *rounds)
    for script, folder in (("spatial_cnn.py", "rgb"), ("motion_cnn.py", "flow")):
        where = (f"--{folder}-dir", root / folder, *common)
        stack = ("--stack-length", 4) if folder == "flow" else ()
        run(script, *train, *stack, *where, root / script)
        again = ("--resume", root / script / "checkpoint.pth.tar", "--evaluate", "--features", root / f"{folder}.npz")
        run(script, *again, *where, root / f"tested_{script}")
    return root


def networks(root: Path) -> list:
    paths = (root / script / "checkpoint.pth.tar" for script in ("spatial_cnn.py", "motion_cnn.py"))
    return [*zip(("--spatial", "--motion"), paths, strict=True)]


def evaluated(root: Path, stream: str, kind: str) -> dict[str, np.ndarray]:
    folder = root / ("tested_spatial_cnn.py" if stream == "spatial" else "tested_motion_cnn.py")
    return pickle.loads((folder / f"{stream}_{kind}_preds.pickle").read_bytes())


def logits_of(answer: dict, stream: str) -> np.ndarray:
    return np.array([answer[stream]["logits"][name] for name in ("run", "walk")])


def test_logits_are_those_of_evaluate(prepared, run):
    flags = [word for pair in networks(prepared) for word in pair]
    videos = prepared / "videos"
    done = run("predict.py", videos / "walk/b.avi", videos / "run", *flags, "--json", "--device", "cpu", "--amp", "off")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {Path(one["video"]).relative_to(videos).as_posix().removesuffix(".avi"): one for one in found}
    assert list(answers) == ["walk/b", "run/a", "run/b"]
    for stream in ("spatial", "motion"):
        expected = evaluated(prepared, stream, "video")
        assert expected.keys() == {"run/b", "walk/b"}
        for key, logits in expected.items():
            assert answers[key][stream]["samples"] == 19
            np.testing.assert_allclose(logits_of(answers[key], stream), logits, atol=1e-3)
        assert abs(expected["run/b"] - expected["walk/b"]).max() > 1e-2  # so the tolerance tells videos apart
    fused = np.exp((logits_of(answers["run/b"], "spatial") + logits_of(answers["run/b"], "motion")) / 2)
    shown = {guess["class"]: guess["probability"] for guess in answers["run/b"]["fused"]["top5"]}
    np.testing.assert_allclose([shown["run"], shown["walk"]], fused / fused.sum(), atol=1e-5)


def test_features_give_the_logits_by_the_last_layer(prepared):
    for script, folder, stream in (("spatial_cnn.py", "rgb", "spatial"), ("motion_cnn.py", "flow", "motion")):
        saved = np.load(prepared / f"{folder}.npz")
        assert saved["videos"].tolist() == ["run/b", "walk/b"] and saved["labels"].tolist() == [0, 1]
        assert saved["features"].shape == (2, 19, 512) and saved["features"].dtype == np.float32
        last = torch.load(prepared / script / "checkpoint.pth.tar", weights_only=True)["state_dict"]
        logits = saved["features"] @ last["fc.weight"].numpy().T + last["fc.bias"].numpy()
        expected = evaluated(prepared, stream, "frame")
        np.testing.assert_allclose(logits, [expected["run/b"], expected["walk/b"]], atol=1e-4)


def call(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words), "--device", "cpu", "--amp", "off"])
    return predict.main()


def flags_of(prepared: Path) -> list:
    return [word for pair in networks(prepared) for word in pair]


def test_table_and_rolling_lines(prepared, monkeypatch, capsys):
    video = prepared / "videos/walk/b.avi"
    assert call(monkeypatch, video, *flags_of(prepared)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{video}  (26 frames, 1.0 s)" and lines[1].split() == ["fused", "spatial", "motion"]
    assert {lines[2].split()[-1], lines[3].split()[-1]} == {"run", "walk"} and "motion alone: " in lines[4]
    assert call(monkeypatch, video, "--motion", networks(prepared)[1][1], "--sliding", 0.4) == 0
    rolling = capsys.readouterr().out.splitlines()
    assert [line[:19].split() for line in rolling] == [
        ["0.0", "-", "0.4", "s"], ["0.2", "-", "0.6", "s"], ["0.4", "-", "0.8", "s"], ["0.6", "-", "1.0", "s"]
    ]  # fmt: skip


def test_films_and_pictures(prepared, monkeypatch, tmp_path):
    video, flags = prepared / "videos/walk/b.avi", flags_of(prepared)
    call(monkeypatch, video, *flags, "--save", tmp_path / "a.png")
    call(monkeypatch, video, *flags, "--save", tmp_path / "a.mp4", "--sliding", 0.4)
    call(monkeypatch, "--camera", video, *flags, "--save", tmp_path / "camera.mp4", "--sliding", 0.4, "--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png", "camera.mp4"]  # and no leavings
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 1280 and np.asarray(picture).std() > 20
    film = [*read_frames(tmp_path / "a.mp4")]
    assert len(film) == FRAMES and film[0].shape[1] == 640 and film[0].shape[0] > 480
    small = cv2.resize(film[9][:480], (128, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert abs(small - [*read_frames(video)][9])[30:].mean() < 12  # the video itself, as far as MPEG-4 keeps it
    assert [*read_frames(tmp_path / "camera.mp4")]


def test_one_bad_video_among_several_costs_only_itself(prepared, monkeypatch, tmp_path, capsys):
    bad = tmp_path / "bad.avi"
    bad.write_bytes(b"no video")
    good = prepared / "videos/walk/b.avi"
    assert call(monkeypatch, bad, good, *flags_of(prepared)) == 1
    said = capsys.readouterr()
    assert f"error: {bad}: cannot be opened" in said.err and "1 of 2 videos failed" in said.err
    assert str(good) in said.out


def test_errors_are_plain(prepared, monkeypatch, tmp_path):
    good, flags = prepared / "videos/walk/b.avi", flags_of(prepared)
    (tmp_path / "bad.avi").write_bytes(b"no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    short = make_video(tmp_path / "short.avi", 0, frames=4)
    spatial, motion = (path for _, path in networks(prepared))
    for words, message in {
        (tmp_path / "bad.avi", *flags): "bad.avi: cannot be opened: not a video",
        (tmp_path / "empty.avi", *flags): "the file is empty",
        (tmp_path / "absent.avi", *flags): "absent.avi does not exist",
        (short, *flags): "short.avi: has 4 frames, and one clip of the flow network needs 5",
        (good,): "no network",
        tuple(flags): "either videos or a --camera",
        (good, "--motion", spatial): "of the spatial stream: give it to --spatial",
        (good, "--spatial", motion): "of the motion stream: give it to --motion",
        (good, "--spatial", tmp_path / "none.pth"): "none.pth",
        (good, *flags, "--sliding", 0.1): "2 frames at 25 per second, and one clip needs 5",
        (good, *flags, "--step", 1): "give --sliding",
        (good, *flags, "--save", "out.gif"): "out.gif: give the name of a .mp4 or .png file",
        (good, good, *flags, "--save", "out.png"): "draws one video, and there are 2",
        (good, *flags, "--views", 5): "--views 5 cuts corners",
        (good, *flags, "--weights", 0, 0): "two numbers",
        (good, *flags, "--flow-method", "raft", "--raft-weights", short): "no file of torchvision's RAFT weights",
        ("--camera", tmp_path / "none", *flags): "no such camera",
    }.items():
        with pytest.raises((InputError, VideoError), match=message.replace(".", r"\.")) as found:
            call(monkeypatch, *words)
        assert "\n" not in str(found.value)


def test_without_opencv_the_message_says_what_to_install(prepared, run, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('No module named cv2')")
    done = run("predict.py", "x.avi", "--spatial", "y", code=2, PYTHONPATH=str(tmp_path))
    assert done.stderr.count("\n") == 1 and "pip install opencv-contrib-python-headless" in done.stderr
