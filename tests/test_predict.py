"""predict.py: answers, class names, drawing; and as a user runs it: the logits of --evaluate, films, errors."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

cv2 = pytest.importorskip("cv2")

from video_files import FRAMES, make_video

import predict
from data.videos import VideoError, read_frames
from dataloader.names import UCF101_CLASSES
from engine.owner import owned
from engine.temporal_heads import LinearHead
from recogniser import loading
from recogniser.answers import Answer, softmax
from recogniser.overlay import Strip, draw, open_film
from recogniser.streams import TrainedHead
from utils import InputError

# --- answers -------------------------------------------------------------------------------------------


def test_fused_is_the_softmax_of_the_weighted_mean_of_mean_logits():
    rng = np.random.default_rng(0)
    logits = {"spatial": rng.normal(size=(4, 6)), "motion": rng.normal(size=(3, 6))}
    times = {"spatial": np.arange(4.0), "motion": np.arange(3.0)}
    samples = {"spatial": 4, "motion": 3}
    answer = Answer(list("abcdef"), 0.0, 4.0, 100, logits, times, samples, [1.0, 3.0])
    mean = (logits["spatial"].mean(0) + 3 * logits["motion"].mean(0)) / 4
    expected = np.exp(mean) / np.exp(mean).sum()
    np.testing.assert_allclose(answer.probabilities()["fused"], expected, rtol=1e-5)
    when, over_time = answer.over_time()
    middle = (logits["spatial"][1] + 3 * logits["motion"][1]) / 4  # both streams have a clip at 1 s
    np.testing.assert_allclose(over_time[list(when).index(1.0)], middle, rtol=1e-5)
    first, second = np.argsort(-expected)[:2]
    strongest, share = answer.moments(1)[0]  # where the first class leads the second most
    assert strongest == when[np.argmax(over_time[:, first] - over_time[:, second])]
    assert share == pytest.approx(softmax(over_time)[list(when).index(strongest), first])


class FakeCheckpoint:
    def __init__(self, path, classes, names=None):
        self.path, self.num_classes, self.class_names = path, classes, names


def test_class_names_come_from_where_they_are_known(tmp_path, capsys):
    own = FakeCheckpoint("own.pth", 2, ["run", "walk"])
    foreign = FakeCheckpoint("foreign.pth", 2)
    assert loading.choose_class_names([own, foreign], None) == ["run", "walk"]
    assert loading.choose_class_names([FakeCheckpoint("original.pth", 101)], None) == list(UCF101_CLASSES)
    assert loading.choose_class_names([foreign], None) == ["class 0", "class 1"]
    assert "foreign.pth does not name its 2 classes" in capsys.readouterr().err
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"jump/{name}1.avi\nsit/{name}2.avi\n")
    assert loading.choose_class_names([foreign], str(tmp_path)) == ["jump", "sit"]


    for other, message in {
        FakeCheckpoint("b.pth", 2, ["walk", "run"]): "the classes of own.pth and b.pth differ",
        FakeCheckpoint("b.pth", 3): "own.pth has 2 classes, b.pth 3",
    }.items():
        with pytest.raises(InputError, match=message):
            loading.choose_class_names([own, other], None)


def test_the_strip_shows_scores_over_time():
    """walk for 5 s, then run: its curve is high in the strip's first half, and the playhead and values move."""
    times = np.array([0, 4.9, 5.1, 10])
    logits = 20 * np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    answer = Answer(["run", "walk"], 0, 10, 250, {"spatial": logits[:, ::-1]}, {"spatial": times}, {"spatial": 4}, [1])
    picture = Image.new("RGB", (640, 480), (77, 77, 77))
    strip = Strip([answer], 640)
    drawn = draw(picture, answer, "whole video", strip, now=2.5)
    assert drawn.shape[1] == 640 and drawn.shape[0] % 2 == 0 and drawn.dtype == np.uint8
    assert (drawn[300:470] == 77).all()  # the picture, untouched but for the caption
    assert (drawn[20:60, 20:200] != 77).any()
    plot = drawn[480:].astype(int)
    left, right = round(strip.left), round(strip.right)
    first, second = slice(left + 20, (left + right) // 2 - 20), slice((left + right) // 2 + 20, right - 20)
    orange = (plot[:, :, 0] - plot[:, :, 2] > 60).sum(0)
    blue = (plot[:, :, 2] - plot[:, :, 0] > 60).sum(0)
    for high, one, other in ((first, orange, blue), (second, blue, orange)):
        if np.median(one[high]) < np.median(other[high]):
            one, other = other, one
        assert np.median(one[high]) > 15 > 4 > np.median(other[high])
    columns = np.flatnonzero((plot[12:60] > 225).all(2).mean(0) > 0.8)  # the playhead, a quarter along the strip
    assert abs(columns.mean() - (left + 0.25 * (right - left))) < 2
    later = draw(picture, answer, "whole video", strip, now=7.5)[480:]
    assert (later[:, right + 5 :] != plot[:, right + 5 :]).any()  # other values


# --- the script ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, run) -> Path:
    """Four videos of two classes: extracted, both streams trained a little and tested, by the scripts."""
    root = tmp_path_factory.mktemp("prepared")
    for seed, name in enumerate(("walk/a.avi", "walk/b.avi", "run/a.avi", "run/b.avi")):
        make_video(root / "videos" / name, seed)
    for name, letter in (("train", "a"), ("test", "b")):
        (root / f"{name}.txt").write_text(f"run/{letter}.avi\nwalk/{letter}.avi\n")
    side = ("--short-side", 64, "--workers", 1)
    run("data/extract_rgb.py", root / "videos", root / "rgb", *side, "--quality", 80, "--sampling-rate", 3)
    run("data/extract_flow.py", root / "videos", root / "flow", *side, "--method", "dis", "--bound", 12)
    common = ("--ucf-list", root, "--workers", 0, "--device", "cpu", "--amp", "off", "--output")
    # until different videos have different logits
    rounds = ("--epochs", 8, "--eval-every", 8, "--lr", 0.02, "--consensus", "mean")
    train = ("--arch", "resnet18", "--weights", "none", "--size", 64, "--batch-size", 2, *rounds)
    for script, folder in (("spatial_cnn.py", "rgb"), ("motion_cnn.py", "flow")):
        where = (f"--{folder}-dir", root / folder, *common)
        stack = ("--stack-length", 4) if folder == "flow" else ()
        run(script, *train, *stack, *where, root / script)
        again = ("--resume", root / script / "checkpoint.pth.tar", "--evaluate")
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


def test_films(prepared, monkeypatch, tmp_path, capsys):
    """A film of windows, and a folder of films, one for each video; H.264 where FFmpeg has it; no leavings."""
    av = pytest.importorskip("av")
    video, flags = prepared / "videos/walk/b.avi", flags_of(prepared)
    call(monkeypatch, video, *flags, "--save", tmp_path / "a.mp4", "--sliding", 0.4)
    film = [*read_frames(tmp_path / "a.mp4")]
    assert len(film) == FRAMES and film[0].shape[1] == 640 and film[0].shape[0] > 480
    small = cv2.resize(film[9][:480], (128, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert abs(small - [*read_frames(video)][9])[30:].mean() < 12  # the video itself, as far as H.264 keeps it
    assert call(monkeypatch, prepared / "videos/run", *flags[:2], "--save", tmp_path / "films") == 0
    films = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in films] == ["a.mp4", "a.mp4", "b.mp4"]
    assert f"written: {films[1]}" in capsys.readouterr().out
    with av.open(str(films[1])) as opened:
        stream = opened.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25


@pytest.mark.parametrize("codecs", [{"libx264"}, set()], ids=["H.264", "MPEG-4"])
def test_a_film_keeps_its_pictures(codecs, tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("av"), "codecs_available", codecs)
    picture = np.full((96, 128, 3), (200, 40, 40), np.uint8)
    with open_film(tmp_path / "a.mp4", 25) as write:
        for _ in range(5):
            write(picture)
    found = [*read_frames(tmp_path / "a.mp4")]
    assert len(found) == 5 and abs(found[2].astype(int) - picture).mean() < 8


def test_a_video_shorter_than_a_stack_is_the_spatial_streams(prepared, monkeypatch, tmp_path, capsys):
    short = make_video(tmp_path / "short.avi", 0, frames=4)
    assert call(monkeypatch, short, *flags_of(prepared)) == 0
    said = capsys.readouterr().out
    note = "spatial stream alone: the video has 4 frames, and one clip of the motion stream needs 5"
    assert note in said and "motion alone" not in said
    assert call(monkeypatch, short, *flags_of(prepared), "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert both["notes"] == [note] and "motion" not in both
    call(monkeypatch, short, *flags_of(prepared)[:2], "--json")
    assert json.loads(capsys.readouterr().out)["fused"] == both["fused"]


def test_a_camera_says_how_late_its_answers_are(prepared, monkeypatch, capsys):
    """OpenCV takes a file for a camera, too."""
    video = prepared / "videos/walk/b.avi"
    call(monkeypatch, "--camera", video, *flags_of(prepared), "--sliding", 0.4, "--json")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers and all(0 <= one["behind"] < 60 for one in answers)
    assert all(one["spatial"]["samples"] == 5 for one in answers)  # 19 in 0.4 s would be the same frames again


def test_a_folder_gets_the_logits_of_evaluate_and_a_score_whatever_one_video_is(prepared, tmp_path, run):
    """Answers come in order; a video that can't be read, or is too wide to be scaled, costs only itself."""
    videos = tmp_path / "videos"
    shutil.copytree(prepared / "videos", videos)
    (videos / "walk/bad.avi").write_bytes(b"no video")
    writer = cv2.VideoWriter(str(videos / "walk/wide.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (8000, 2))
    for _ in range(6):
        writer.write(np.zeros((2, 8000, 3), np.uint8))
    writer.release()
    flags = (*flags_of(prepared), "--json", "--report", tmp_path / "out", "--device", "cpu", "--amp", "off")
    done = run("predict.py", videos, *flags, code=1)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    places = [Path(one["video"]).relative_to(videos).as_posix() for one in answers]
    assert places == ["run/a.avi", "run/b.avi", "walk/a.avi", "walk/b.avi"]
    for name in ("bad", "wide"):
        assert f"error: {videos / 'walk' / name}.avi: " in done.stderr
    assert "2 of 6 videos failed" in done.stderr and "Traceback" not in done.stderr
    for stream in ("spatial", "motion"):
        expected = evaluated(prepared, stream, "video")
        for key, found in (("run/b", answers[1]), ("walk/b", answers[3])):
            assert found[stream]["samples"] == 19
            np.testing.assert_allclose(logits_of(found, stream), expected[key], atol=1e-3)
        assert abs(expected["run/b"] - expected["walk/b"]).max() > 1e-2  # so the tolerance tells videos apart
    fused = np.exp((logits_of(answers[1], "spatial") + logits_of(answers[1], "motion")) / 2)
    shown = {guess["class"]: guess["probability"] for guess in answers[1]["fused"]["top5"]}
    np.testing.assert_allclose([shown["run"], shown["walk"]], fused / fused.sum(), atol=1e-5)
    right = [one["class"] == place.split("/")[0] for one, place in zip(answers, places, strict=True)]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["fusion"]["top1"] == 100 * np.mean(right) and results["videos"] == 4
    walks = [one["class"] == "walk" for one in answers]
    (table,) = re.findall(r"guessed +(.*)\ntrue class.*\n((?:run|walk) .*)\n((?:run|walk) .*)\n", done.stderr)
    for row, start in zip(table[1:], (0, 2), strict=True):
        counts = dict(zip(table[0].split(), map(int, row.split()[1:]), strict=True))
        assert counts.get("walk", 0) == sum(walks[start : start + 2]) and sum(counts.values()) == 2
    report = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert all(ok or str(videos / place) in report for ok, place in zip(right, places, strict=True))


def test_as_a_library_it_answers_files_arrays_and_iterators_alike(prepared, monkeypatch, capsys):
    paths = {f"--{name}": path for name, path in zip(("spatial", "motion"), flags_of(prepared)[1::2], strict=True)}
    model = predict.load(paths["--spatial"], paths["--motion"], device="cpu", amp="off")
    video = prepared / "videos/walk/b.avi"
    answer = model(str(video))
    call(monkeypatch, video, *flags_of(prepared), "--json")
    said = json.loads(capsys.readouterr().out)
    assert answer.class_name == said["class"]
    for name in ("fused", "spatial", "motion"):
        assert [(one["class"], one["probability"]) for one in said[name]["top5"]] == [
            (label, round(share, 6)) for label, share in answer.top(5, name)
        ]
    assert answer.moments()[0] == pytest.approx((said["moments"][0]["second"], said["moments"][0]["probability"]), 1e-3)
    frames = [*read_frames(video)]
    for given in (np.stack(frames), iter(frames)):
        again = model(given, rate=25)
        np.testing.assert_array_equal(again.fused(), answer.fused())
        np.testing.assert_array_equal(again.times["motion"], answer.times["motion"])
    for wrong in (np.zeros((9, 8, 8, 3), np.float32), np.zeros((9, 8, 8), np.uint8), []):
        with pytest.raises(VideoError, match="not RGB uint8|has 0 frames"):
            model(wrong)
    for wish in ({"samples": 0}, {"sliding": float("nan")}, {"amp": "half"}, {"flow_order": "new"}):
        with pytest.raises(InputError, match=f"--{next(iter(wish))}".replace("_", "-")) as caught:
            predict.load(*paths.values(), device="cpu", **wish)
        assert "python" not in str(caught.value)


def test_scores_that_are_not_finite_name_no_action(prepared, monkeypatch, tmp_path):
    learnt = {"weights": {"spatial": 0.5, "motion": 0.5}, "temperature": 1e-320,
              "learnt_on": {"videos": 9, "groups": 9, "paths": []}}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"learnt": learnt}))
    with pytest.raises(InputError, match="finite|temperature|learnt"):
        call(monkeypatch, prepared / "videos/walk/b.avi", *flags_of(prepared), "--fusion", tmp_path / "results.json")


@pytest.mark.parametrize("chosen", ["motion", "joined"])
def test_the_fusion_that_was_chosen_is_taken(prepared, monkeypatch, tmp_path, capsys, chosen):
    """A stream alone leaves the other out; the joined head's two checkpoints stand in for the streams'."""
    flags = flags_of(prepared)
    joined = {"spatial": 0.5, "motion": 0.5}
    learnt = {"weights": {"spatial": 0.0, "motion": 1.0} if chosen == "motion" else joined, "temperature": 2.0,
              "learnt_on": {"videos": 9, "groups": 9, "paths": []}, "chosen": chosen, "joined": None}  # fmt: skip
    if chosen == "joined":
        learnt["joined"] = str(tmp_path / "joined")
        for name, path in zip(("motion", "spatial"), (flags[3], flags[1]), strict=True):
            (tmp_path / "joined" / name).mkdir(parents=True)
            shutil.copy(path, tmp_path / "joined" / name / "checkpoint.pth.tar")
        flags[1] = flags[3] = tmp_path / "not_needed.pth.tar"
    (tmp_path / "results.json").write_text(json.dumps({"learnt": learnt}))
    call(monkeypatch, prepared / "videos/walk/b.avi", *flags, "--json", "--fusion", tmp_path / "results.json")
    said = json.loads(capsys.readouterr().out)
    taken = ["motion"] if chosen == "motion" else ["spatial", "motion"]
    assert [name for name in ("spatial", "motion") if name in said] == taken
    expected = np.exp(np.mean([logits_of(said, name) for name in taken], axis=0) / 2.0)
    shares = {guess["class"]: guess["probability"] for guess in said["fused"]["top5"]}
    np.testing.assert_allclose([shares["run"], shares["walk"]], expected / expected.sum(), atol=1e-5)


def test_a_linear_heads_answer_is_the_mean_of_what_its_samples_add():
    torch.manual_seed(0)
    head = LinearHead(5, 3)
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    features[:, 2] = 1  # which does not change over time
    parts = TrainedHead("motion", head.eval(), ["motion"]).answer({"motion": features})
    expected = head(torch.from_numpy(features)[None].float()).detach().numpy()
    assert parts.shape == (7, 3) and np.ptp(parts, axis=0).min() > 0.1
    np.testing.assert_allclose(parts.mean(0, keepdims=True), expected, atol=1e-5)


def test_errors_are_plain(prepared, monkeypatch, tmp_path):
    good, flags = prepared / "videos/walk/b.avi", flags_of(prepared)
    (tmp_path / "bad.avi").write_bytes(b"no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    short = make_video(tmp_path / "short.avi", 0, frames=4)
    (tmp_path / "film.mp4").write_bytes(b"")
    spatial, motion = (path for _, path in networks(prepared))
    for words, message in {
        (tmp_path / "bad.avi", *flags): "bad.avi: cannot be opened: not a video",
        (tmp_path / "empty.avi", *flags): "the file is empty",
        (tmp_path / "absent.avi", *flags): "absent.avi: cannot be opened: no such file",
        (short, *flags[2:]): "short.avi: has 4 frames, and one clip of the motion stream needs 5",
        (good, *flags, "--sliding", "inf"): "--sliding: must be from 0.001 to 86400",
        ("--camera", "9" * 30, *flags): "no such camera",
        ("--camera", good, *flags, "--save", tmp_path): "draws videos: record the camera",
        (os.devnull, *flags, "--sliding", 1): "is no file but a folder, a pipe or a device",
        (good,): "no network",
        tuple(flags): "either videos or a --camera",
        (good, "--motion", spatial): "of the spatial stream: pass it to --spatial",
        (good, "--spatial", motion): "of the motion stream: pass it to --motion",
        (good, "--spatial", tmp_path / "none.pth"): "none.pth",
        (good, *flags, "--sliding", 0.1): "2 frames at 25 per second, and one clip needs 5",
        (good, *flags, "--save", "out.gif"): "out.gif: pass the name of a .mp4 file, or a folder",
        (good, prepared / "videos/run/b.avi", *flags, "--save", "out.mp4"): "2 videos would be drawn to",
        (good, prepared / "videos/run/b.avi", *flags, "--save", tmp_path): "2 videos would be drawn to",
        (tmp_path / "film.mp4", *flags, "--save", tmp_path): "would write over",
        (good, *flags, "--save", tmp_path / "bad.avi/x.mp4"): "cannot write to a folder",
        (prepared / "videos", *flags, "--report", tmp_path / "bad.avi"): "cannot write to a folder",
        (good, *flags, "--weights", 0, 0): "two numbers",
        (good, *flags, "--flow-method", "raft", "--raft-weights", short): "holds no RAFT weights",
    }.items():
        with pytest.raises((InputError, VideoError), match=message.replace(".", r"\.")) as found:
            call(monkeypatch, *words)
        assert "\n" not in str(found.value)
    for weights in (3, "ab", (1, "b"), (0, 0), (1, 2, 3)):
        with pytest.raises(InputError, match="two numbers"):
            predict.load(spatial=spatial, motion=motion, weights=weights)
    with owned(tmp_path / "out"), pytest.raises(InputError, match="belongs to a run that still writes there"):
        call(monkeypatch, prepared / "videos", *flags, "--report", tmp_path / "out")
