"""predict.py: answers, class names, drawing; and as a user runs it: the logits of --evaluate, films, errors."""

import json
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from network_files import save_network
from PIL import Image
from scipy.special import softmax
from video_files import FRAMES, make_video

import predict
from data.videos import VideoError, read_frames
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import default_preparation
from engine.owner import owned
from engine.temporal_heads import LinearHead
from recogniser.answers import Answer
from recogniser.overlay import Strip, draw
from recogniser.streams import TrainedHead, choose_class_names
from utils import InputError

# --- answers -------------------------------------------------------------------------------------------


def test_fused_is_the_softmax_of_the_weighted_mean_of_mean_logits():
    rng = np.random.default_rng(0)
    logits = {"spatial": rng.normal(size=(4, 6)), "motion": rng.normal(size=(3, 6))}
    times, samples = {"spatial": np.arange(4.0), "motion": np.arange(3.0)}, {"spatial": 4, "motion": 3}
    answer = Answer(list("abcdef"), 0.0, 4.0, 100, logits, times, samples, [1.0, 3.0])
    mean = (logits["spatial"].mean(0) + 3 * logits["motion"].mean(0)) / 4
    expected = np.exp(mean) / np.exp(mean).sum()
    np.testing.assert_allclose(answer.probabilities()["fused"], expected, rtol=1e-5)
    alone = Answer(["a", "b"], 0.0, 4.0, 100, {"spatial": np.array([[4.0, 0.0]])}, times, samples, [1.0], 2.0)
    np.testing.assert_allclose(alone.probabilities()["spatial"], [0.880797, 0.119203], rtol=1e-5)  # 1 / (1 + exp(-2))
    when, over_time = answer.over_time()
    middle = (logits["spatial"][1] + 3 * logits["motion"][1]) / 4  # both streams have a clip at 1 s
    np.testing.assert_allclose(over_time[list(when).index(1.0)], middle, rtol=1e-5)
    first, second = np.argsort(-expected)[:2]
    strongest, share = answer.moments(1)[0]  # where the first class leads the second most
    assert strongest == when[np.argmax(over_time[:, first] - over_time[:, second])]
    assert share == pytest.approx(softmax(over_time, axis=1)[list(when).index(strongest), first])


def test_class_names_come_from_where_they_are_known(tmp_path, capsys):
    def fake(path, classes, names=None):
        return SimpleNamespace(path=path, num_classes=classes, class_names=names)

    own, foreign = fake("own.pth", 2, ["run", "walk"]), fake("foreign.pth", 2)
    assert choose_class_names([own, foreign], None) == ["run", "walk"]
    assert choose_class_names([fake("original.pth", 101)], None) == list(UCF101_CLASSES)
    assert choose_class_names([foreign], None) == ["class 0", "class 1"]
    assert "foreign.pth does not name its 2 classes" in capsys.readouterr().err
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"jump/{name}1.avi\nsit/{name}2.avi\n")
    assert choose_class_names([foreign], str(tmp_path)) == ["jump", "sit"]
    for other in (fake("b.pth", 2, ["walk", "run"]), fake("b.pth", 3)):
        with pytest.raises(InputError, match=r"own\.pth and b\.pth differ in classes"):
            choose_class_names([own, other], None)


def test_the_strip_shows_scores_over_time():
    """walk for 5 s, then run: its curve is high in the strip's first half, and the playhead and values move."""
    times = np.array([0, 4.9, 5.1, 10])
    logits = 20 * np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    answer = Answer(["run", "walk"], 0, 10, 250, {"spatial": logits[:, ::-1]}, {"spatial": times}, {"spatial": 4}, [1])
    picture, strip = Image.new("RGB", (640, 480), (77, 77, 77)), Strip([answer], 640)
    drawn = draw(picture, strip, now=2.5)
    assert drawn.shape[1] == 640 and drawn.shape[0] % 2 == 0 and drawn.dtype == np.uint8
    assert (drawn[300:470] == 77).all()  # the picture, untouched but for the caption
    assert (drawn[20:60, 20:200] != 77).any()
    plot = drawn[480:].astype(int)
    left, right = round(strip.left), round(strip.right)
    middle, coloured = (left + right) // 2, abs(plot[:, :, 0] - plot[:, :, 2]) > 60
    run, walk = coloured[:38].sum(0), coloured[38:80].sum(0)  # their rows, pixels by column
    for half, high, low in (slice(left + 20, middle - 20), walk, run), (slice(middle + 20, right - 20), run, walk):
        assert np.median(high[half]) > 15 > 4 > np.median(low[half])
    columns = np.flatnonzero((plot[12:60] > 225).all(2).mean(0) > 0.8)  # the playhead, a quarter along the strip
    assert abs(columns.mean() - (left + 0.25 * (right - left))) < 2
    later = draw(picture, strip, now=7.5)[480:]
    assert (later[:, right + 5 :] != plot[:, right + 5 :]).any()  # other values


def test_a_linear_heads_answer_is_the_mean_of_what_its_samples_add():
    torch.manual_seed(0)
    head = LinearHead(5, 3)
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    features[:, 2] = 1  # which does not change over time
    parts = TrainedHead("motion", head.eval(), ["motion"]).answer({"motion": features})
    expected = head(torch.from_numpy(features)[None].float()).detach().numpy()
    assert parts.shape == (7, 3) and np.ptp(parts, axis=0).min() > 0.1
    np.testing.assert_allclose(parts.mean(0, keepdims=True), expected, atol=1e-5)


# --- the script ----------------------------------------------------------------------------------------

EXTRACTED = {"short_side": 64, "quality": 80, "sampling_rate": 3, "method": "dis", "bound": 12.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Four videos of two classes, and a network of each stream."""
    root = tmp_path_factory.mktemp("prepared")
    for seed, name in enumerate(("walk/a.avi", "walk/b.avi", "run/a.avi", "run/b.avi")):
        make_video(root / "videos" / name, seed)
    for name, modality, length in (("spatial", "rgb", 1), ("motion", "flow", 4)):
        preparation = default_preparation(modality, 64, "squash", length).with_extraction(EXTRACTED)
        if modality == "flow":
            preparation = replace(preparation, std=(0.06,))  # so that videos of little motion have different logits
        save_network(root / f"{name}.pth.tar", preparation, ("run", "walk"), sharp=40)
    return root


@pytest.fixture(scope="module")
def flags(prepared) -> list:
    return ["--spatial", prepared / "spatial.pth.tar", "--motion", prepared / "motion.pth.tar"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run predict.py in this process: call(*words, code=0) -> what it wrote to stdout and stderr."""

    def call(*words: object, code: int = 0):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words), "--device", "cpu", "--amp", "off"])
        assert predict.main() == code
        return capsys.readouterr()

    return call


def logits_of(answer: dict, stream: str) -> np.ndarray:
    return np.array([answer[stream]["logits"][name] for name in ("run", "walk")])


def test_table_lines_of_windows_and_flags_without_effect(prepared, flags, call):
    video = prepared / "videos/walk/b.avi"
    said = call(video, *flags)
    lines = said.out.splitlines()
    assert lines[0] == f"{video}  (26 frames, 1.0 s)" and lines[1].split() == ["fused", "spatial", "motion"]
    assert {lines[2].split()[-1], lines[3].split()[-1]} == {"run", "walk"} and "motion alone: " in lines[4]
    assert not said.err
    lines = call(video, *flags[2:], "--sliding", 0.4, "--flow-method", "dis").out.splitlines()
    assert [line[:19].split() for line in lines] == [["0.0", "-", "0.4", "s"], ["0.2", "-", "0.6", "s"],
                                                     ["0.4", "-", "0.8", "s"], ["0.6", "-", "1.0", "s"]]  # fmt: skip
    useless = ("--flow-method", "dis", "--flow-order", "older", "--ucf-list", "lists", "--raft-weights", "small")
    said = call(video, *flags[:2], *useless, "--report", "out")
    noted = "".join(line for line in said.err.splitlines() if "without effect" in line)
    assert all(word in noted for word in (*useless[::2], "--report"))


def test_films(prepared, flags, call, tmp_path):
    """A film of windows, and a folder of films, one for each video; no leavings."""
    video = prepared / "videos/walk/b.avi"
    call(video, *flags, "--save", tmp_path / "a.mp4", "--sliding", 0.4)
    film = [*read_frames(tmp_path / "a.mp4")]
    assert len(film) == FRAMES and film[0].shape[1] == 640 and film[0].shape[0] > 480
    small = cv2.resize(film[9][:480], (128, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert abs(small - [*read_frames(video)][9])[30:].mean() < 12  # the video itself, as far as H.264 keeps it
    said = call(prepared / "videos/run", *flags[:2], "--save", tmp_path / "films")
    films = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in films] == ["a.mp4", "a.mp4", "b.mp4"]
    assert f"written: {films[1]}" in said.out


def test_a_video_shorter_than_a_stack_is_the_spatial_streams(flags, call, tmp_path):
    short = make_video(tmp_path / "short.avi", 0, frames=4)
    note = "spatial stream alone: the video has 4 frames, and one clip of the motion stream needs 5"
    assert note in call(short, *flags).out
    both = json.loads(call(short, *flags, "--json").out)
    assert both["notes"] == [note] and "motion" not in both
    assert json.loads(call(short, *flags[:2], "--json").out)["fused"] == both["fused"]


def test_a_folder_gets_the_logits_of_evaluate_and_a_score_whatever_one_video_is(prepared, flags, tmp_path, run):
    """Answers come in order; a video that can't be read costs only itself."""
    videos, lists = tmp_path / "videos", tmp_path / "lists"
    shutil.copytree(prepared / "videos", videos)
    lists.mkdir()
    for name, letter in (("train", "a"), ("test", "b")):
        (lists / f"{name}.txt").write_text(f"run/{letter}.avi\nwalk/{letter}.avi\n")
    side = ("--short-side", 64, "--workers", 1, "--quality", 80)
    run("data/extract_rgb.py", videos, tmp_path / "rgb", *side, "--sampling-rate", 3)
    run("data/extract_flow.py", videos, tmp_path / "flow", *side, "--method", "dis", "--bound", 12)
    expected = {}
    for stream, script, folder in (("spatial", "spatial_cnn.py", "rgb"), ("motion", "motion_cnn.py", "flow")):
        where = (f"--{folder}-dir", tmp_path / folder, "--ucf-list", lists, "--output", tmp_path / stream)
        run(script, "--resume", flags[flags.index(f"--{stream}") + 1], "--evaluate", *where,
            "--workers", 0, "--device", "cpu", "--amp", "off")  # fmt: skip
        expected[stream] = pickle.loads((tmp_path / stream / f"{stream}_video_preds.pickle").read_bytes())

    (videos / "walk/bad.avi").write_bytes(b"no video")
    words = (*flags, "--json", "--report", tmp_path / "out", "--device", "cpu", "--amp", "off")
    done = run("predict.py", videos, *words, code=1)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    places = [Path(one["video"]).relative_to(videos).as_posix() for one in answers]
    assert places == ["run/a.avi", "run/b.avi", "walk/a.avi", "walk/b.avi"]
    assert f"error: {videos}/walk/bad.avi: cannot be opened" in done.stderr
    assert "1 of 5 videos failed" in done.stderr and "Traceback" not in done.stderr
    for stream, preds in expected.items():
        for key, found in (("run/b", answers[1]), ("walk/b", answers[3])):
            assert found[stream]["samples"] == 19
            np.testing.assert_allclose(logits_of(found, stream), preds[key], atol=1e-3)
        assert abs(preds["run/b"] - preds["walk/b"]).max() > 1e-2  # so the tolerance tells videos apart
    fused = np.exp((logits_of(answers[1], "spatial") + logits_of(answers[1], "motion")) / 2)
    shown = {guess["class"]: guess["probability"] for guess in answers[1]["fused"]["top5"]}
    np.testing.assert_allclose([shown["run"], shown["walk"]], fused / fused.sum(), atol=1e-5)
    right = [one["class"] == place.split("/")[0] for one, place in zip(answers, places, strict=True)]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["fusion"]["top1"] == 100 * np.mean(right) and results["videos"] == 4
    report = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert all(ok or str(videos / place) in report for ok, place in zip(right, places, strict=True))


def test_as_a_library_it_answers_files_arrays_and_iterators_alike(prepared, flags, call):
    model = predict.load(flags[1], flags[3], device="cpu", amp="off")
    video = prepared / "videos/walk/b.avi"
    answer = model(str(video))
    said = json.loads(call(video, *flags, "--json").out)
    assert answer.class_name == said["class"]
    for name in ("fused", "spatial", "motion"):
        top5 = [{"class": label, "probability": round(share, 6)} for label, share in answer.top(5, name)]
        assert said[name]["top5"] == top5
    assert answer.moments()[0] == pytest.approx((said["moments"][0]["second"], said["moments"][0]["probability"]), 1e-3)
    frames = [*read_frames(video)]
    for given in (np.stack(frames), iter(frames)):
        again = model(given, rate=25)
        np.testing.assert_array_equal(again.fused(), answer.fused())
        np.testing.assert_array_equal(again.times["motion"], answer.times["motion"])
    for wrong in (np.zeros((9, 8, 8, 3), np.float32), np.zeros((9, 8, 8), np.uint8), []):
        with pytest.raises(VideoError, match="not RGB uint8|has 0 frames"):
            model(wrong)
    for name, wrong in {"samples": 0, "sliding": float("nan"), "sampels": 1, "weights": (0, 0)}.items():
        with pytest.raises(InputError, match=f"--{name}"):
            predict.load(*flags[1::2], device="cpu", **{name: wrong})


@pytest.mark.parametrize("chosen", ["motion", "joined"])
def test_the_fusion_that_was_chosen_is_taken(prepared, flags, call, tmp_path, chosen):
    """A stream alone leaves the other out; the joined head's two checkpoints stand in for the streams'."""
    joined = {"spatial": 0.5, "motion": 0.5}
    learnt = {"weights": {"spatial": 0.0, "motion": 1.0} if chosen == "motion" else joined, "temperature": 2.0,
              "learnt_on": {"videos": 9, "groups": 9, "paths": []}, "chosen": chosen}  # fmt: skip
    if chosen == "joined":
        learnt["joined"] = str(tmp_path / "joined")
        for name, path in zip(("spatial", "motion"), flags[1::2], strict=True):
            (tmp_path / "joined" / name).mkdir(parents=True)
            shutil.copy(path, tmp_path / "joined" / name / "checkpoint.pth.tar")
        flags = ["--spatial", "not needed", "--motion", "not needed"]
    (tmp_path / "results.json").write_text(json.dumps({"learnt": learnt}))
    words = (prepared / "videos/walk/b.avi", *flags, "--fusion", tmp_path / "results.json", "--json")
    said = json.loads(call(*words).out)
    taken = ["motion"] if chosen == "motion" else ["spatial", "motion"]
    assert [name for name in ("spatial", "motion") if name in said] == taken
    expected = np.exp(np.mean([logits_of(said, name) for name in taken], axis=0) / 2.0)
    shares = {guess["class"]: guess["probability"] for guess in said["fused"]["top5"]}
    np.testing.assert_allclose([shares["run"], shares["walk"]], expected / expected.sum(), atol=1e-5)
    (tmp_path / "results.json").write_text(json.dumps({"learnt": learnt | {"temperature": 1e-320}}))
    with pytest.raises(InputError, match="temperature"):
        call(*words)


def test_errors_are_plain(prepared, flags, call, tmp_path):
    good = prepared / "videos/walk/b.avi"
    (tmp_path / "bad.avi").write_bytes(b"no video")
    short = make_video(tmp_path / "short.avi", 0, frames=4)
    (tmp_path / "film.mp4").write_bytes(b"")
    for words, message in {
        (tmp_path / "bad.avi", *flags): "bad.avi: cannot be opened: not a video",
        (short, *flags[2:]): "short.avi: has 4 frames, and one clip of the motion stream needs 5",
        (os.devnull, *flags, "--sliding", 1): "is no file but a folder, a pipe or a device",
        (good, *flags[2:], "--sliding", 0.08): "has 2 frames, and one clip of the motion stream needs 5",
    }.items():
        said = call(*words, code=2).err.splitlines()
        assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]
    for words, message in {
        (good, *flags, "--sliding", "inf"): "--sliding: must be from 0.001 to 86400",
        (good,): "no network",
        tuple(flags): "either videos or a --camera",
        ("--camera", "9" * 30, *flags): "no such camera",
        ("--camera", "0", *flags, "--save", tmp_path): "draws videos: record the camera",
        (good, "--motion", flags[1]): "of the spatial stream: pass it to --spatial",
        (good, "--spatial", tmp_path / "none.pth"): "none.pth",
        (good, *flags[:2], "--weights", 1, 2): "weight two streams",
        (good, *flags, "--save", "out.gif"): "out.gif: pass the name of a .mp4 file, or a folder",
        (good, prepared / "videos/run/b.avi", *flags, "--save", "out.mp4"): "written over another one",
        (tmp_path / "film.mp4", *flags, "--save", tmp_path): "or over a video",
        (prepared / "videos", *flags, "--report", tmp_path / "bad.avi"): "cannot write to a folder",
        (good, *flags, "--flow-method", "raft", "--raft-weights", short): "holds no RAFT weights",
    }.items():
        with pytest.raises(InputError, match=message.replace(".", r"\.")) as found:
            call(*words)
        assert "\n" not in str(found.value)
    with owned(tmp_path / "out"), pytest.raises(InputError, match="belongs to a run that still writes there"):
        call(prepared / "videos", *flags, "--report", tmp_path / "out")
