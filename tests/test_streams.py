"""The scripts as a user runs them: train, resume, evaluate, fuse, on tiny data."""

import json
import pickle
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY

STREAMS = {"spatial": ("spatial_cnn.py", "--rgb-dir", "rgb", "rgb"),
           "motion": ("motion_cnn.py", "--flow-dir", "flow", "opf")}  # fmt: skip
TESTED = {f"{name}_g0{group}_c01" for name in ("Archery", "HammerThrow", "Hammering") for group in (1, 2)}


@pytest.fixture(scope="module")
def both(tiny, run, tmp_path_factory):
    """One epoch of each stream: {name: (name, script and data flags, output folder, what it printed)}."""
    found, root = {}, tmp_path_factory.mktemp("both")
    for stream, (script, flag, folder, _) in STREAMS.items():
        arguments = (script, flag, tiny / folder, *TINY, "--output", root / stream)
        found[stream] = (stream, arguments, root / stream, run(*arguments, "--epochs", 1).stdout)
    return found


@pytest.fixture(params=STREAMS)
def trained(request, both):
    return both[request.param]


def load_pickles(output, stream):
    return [pickle.loads((output / f"{stream}_{kind}_preds.pickle").read_bytes()) for kind in ("frame", "video")]


def test_training_leaves_predictions_records_and_checkpoints(trained):
    stream, _, output, text = trained
    frames, videos = load_pickles(output, stream)
    assert set(frames) == set(videos) == TESTED
    for name, logits in frames.items():
        assert logits.dtype == videos[name].dtype == np.float32
        assert logits.shape == (3, 101) and videos[name].shape == (101,)
        np.testing.assert_allclose(videos[name], logits.mean(0), rtol=1e-5, atol=1e-6)
    about = json.loads((output / "predictions.json").read_text())
    assert about["labels"]["Hammering_g01_c01"] == 34 and about["labels"]["HammerThrow_g01_c01"] == 35
    assert about["class_names"][34:36] == ["Hammering", "HammerThrow"]
    assert about["protocol"]["samples"] == 3 and about["checkpoint"]["epoch"] == 0
    prefix = STREAMS[stream][3]
    for kind in ("train", "test"):
        record = pd.read_csv(output / f"{prefix}_{kind}.csv")
        assert list(record) == ["Epoch", "Batch Time", "Data Time", "Loss", "Prec@1", "Prec@5", "lr"]
        assert record["Epoch"].tolist() == [0]
    # the record's test row against the pickle
    labels = np.array([about["labels"][name] for name in videos])
    scores = torch.tensor(np.stack(list(videos.values())))
    loss = torch.nn.functional.cross_entropy(3 * scores, torch.tensor(labels)).item()  # the original sums its samples
    row = pd.read_csv(output / f"{prefix}_test.csv").iloc[0]
    assert row["Loss"] == pytest.approx(loss, rel=1e-4)
    assert row["Prec@1"] == pytest.approx(100 * (scores.argmax(1).numpy() == labels).mean())
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        saved = torch.load(output / name, weights_only=True)
        assert saved["epoch"] == 0 and saved["arch"] == "timm:test_resnet"
        assert next(iter(saved["state_dict"].values())).shape[1] == (3 if stream == "spatial" else 20)
    for words in ("chosen by the test set", "6 training and 6 test videos"):
        assert words in text


def test_evaluate_only_tests_and_gives_the_same_predictions(both, run):
    stream, arguments, output, _ = both["motion"]
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    _, videos = load_pickles(output, stream)
    for kind in ("frame", "video"):
        (output / f"{stream}_{kind}_preds.pickle").unlink()
    process = run(*arguments, "--resume", output / "checkpoint.pth.tar", "--evaluate")
    assert "epoch" not in process.stdout.replace("of epoch", "")
    _, again = load_pickles(output, stream)
    for name, logits in videos.items():
        np.testing.assert_array_equal(again[name], logits)
    for name in ("checkpoint.pth.tar", "model_best.pth.tar", *(n for n in before if n.endswith(".csv"))):
        assert (output / name).read_bytes() == before[name]


def test_a_training_from_the_start_keeps_what_another_left_and_resume_moves_nothing(both, run, tmp_path):
    stream, (script, flag, folder, *rest), output, _ = both["motion"]
    shutil.copytree(output, tmp_path / "out")
    arguments = (script, flag, folder, *rest[:-1], tmp_path / "out", "--seed", 1)
    assert f"{tmp_path / 'out'}/old1_*" in run(*arguments, "--epochs", 1).stdout
    prefix = STREAMS[stream][3]
    for name in ("checkpoint.pth.tar", "model_best.pth.tar", f"{prefix}_train.csv", f"{prefix}_test.csv"):
        assert (tmp_path / "out" / f"old1_{name}").read_bytes() == (output / name).read_bytes()
    process = run(*arguments, "--epochs", 2, "--resume", "--tensorboard")
    assert "epoch 1:" in process.stdout and "epoch 0:" not in process.stdout
    assert "2 epochs, from epoch 1 on, of 2 steps" in process.stdout
    assert (tmp_path / "out/old1_checkpoint.pth.tar").read_bytes() == (output / "checkpoint.pth.tar").read_bytes()
    after = torch.load(tmp_path / "out/checkpoint.pth.tar", weights_only=True)
    assert after["epoch"] == 1
    buffers = after["optimizer"]["state"]
    assert buffers and all(torch.isfinite(b["momentum_buffer"]).all() for b in buffers.values())
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = events.EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    for kind in ("train", "test"):
        record = pd.read_csv(tmp_path / "out" / f"{prefix}_{kind}.csv")
        assert record["Epoch"].tolist() == [0, 1]
        for column in ("Loss", "Prec@1", "lr"):  # TensorBoard shows what the record holds
            (event,) = curves.Scalars(f"{kind}/{column}")
            assert (event.step, event.value) == (1, pytest.approx(record[column][1], rel=1e-5))


def test_both_streams_fuse(both, tiny, run, tmp_path):
    out = {stream: found[2] for stream, found in both.items()}
    run("fusion.py", "--spatial", out["spatial"] / "spatial_video_preds.pickle",
        "--motion", out["motion"] / "motion_video_preds.pickle", "--output", tmp_path / "fusion")  # fmt: skip
    results = json.loads((tmp_path / "fusion/results.json").read_text())
    assert results["videos"] == 6
    scores = [load_pickles(out[stream], stream)[1] for stream in STREAMS]
    labels = json.loads((out["spatial"] / "predictions.json").read_text())["labels"]
    right = [np.argmax(scores[0][name] + scores[1][name]) == labels[name] for name in labels]
    assert results["fusion"]["top1"] == pytest.approx(100 * np.mean(right))
    report = (tmp_path / "fusion/report.html").read_text(encoding="utf-8")
    for script, flag, folder, _ in STREAMS.values():
        made = re.search(rf"{script} {flag} {re.escape(str(tiny / folder))} .*torch ([\d.]+)", report)
        assert made is not None and torch.__version__.startswith(made[1].rstrip("."))
    assert report.count("data:image/jpeg") >= 6 - round(results["fusion"]["top1"] * 6 / 100)


def test_the_tsn_recipe_and_rgb_differences(tiny, run, tmp_path):
    common = (*TINY, "--recipe", "tsn", "--epochs", 1, "--batch-size", 3, "--test-samples", 2, "--size", 64)
    run("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *common, "--output", tmp_path / "s",
        "--accumulate", 2, "--schedule", "cosine")  # fmt: skip
    saved = torch.load(tmp_path / "s/checkpoint.pth.tar", weights_only=True)
    assert saved["preparation"]["test_resize"] == "center" and saved["args"]["dropout"] == 0.8
    # batch norms but the first keep their statistics
    first, *others = (value for name, value in saved["state_dict"].items() if name.endswith("running_mean"))
    assert first.any() and len(others) > 9 and not any(other.any() for other in others)
    run("spatial_cnn.py", "--rgb-dir", tiny / "rgb", "--ucf-list", "none", "--output", tmp_path / "s",
        "--resume", tmp_path / "s/model_best.pth.tar", "--evaluate", "--workers", 0)  # fmt: skip
    about = json.loads((tmp_path / "s/predictions.json").read_text())
    protocol = about["protocol"]
    assert (protocol["views"], protocol["samples"], protocol["starts"]) == (10, 2, "tsn")  # from the checkpoint
    run("motion_cnn.py", "--input", "rgbdiff", "--rgb-dir", tiny / "rgb", *common, "--output", tmp_path / "m")
    saved = torch.load(tmp_path / "m/checkpoint.pth.tar", weights_only=True)
    assert next(iter(saved["state_dict"].values())).shape[1] == 15
    own = {"segments": 7, "dropout": 0.8, "clip_grad": 40, "lr": 1e-3, "milestones": [80 / 180, 160 / 180]}
    assert {name: saved["args"][name] for name in own} == own  # tsn-pytorch's README
    assert (tmp_path / "m/motion_video_preds.pickle").is_file()


def test_validation_groups_leave_the_test_set_to_the_end(tiny, run, tmp_path):
    flags = (*TINY, "--epochs", 2, "--val-groups", 1, "--output", tmp_path)
    process = run("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *flags)
    assert "3 training and 6 test videos" in process.stdout and "| val:" in process.stdout
    about = json.loads((tmp_path / "predictions.json").read_text())
    assert about["subset"] == "test" and {name.split("_")[1] for name in about["labels"]} == {"g01", "g02"}
    assert about["chosen_by"] == "val" and about["made"]["settings"]["val_groups"] == 1
    # and the best epoch's predictions of the validation videos lie in val/, which fusion.py --learn takes
    held_out = json.loads((tmp_path / "val/predictions.json").read_text())
    assert held_out["subset"] == "val" and {name.split("_")[1] for name in held_out["labels"]} == {"g22"}
    assert held_out["checkpoint"]["epoch"] == about["checkpoint"]["epoch"]
