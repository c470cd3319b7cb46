"""docs/export.md: its very lines give predict.py's top 5, of either stream; export.py's .safetensors, read by all."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from torchvision.models import resnet18

pytest.importorskip("cv2")

from video_files import make_video

from dataloader.preparation import Preparation, default_preparation
from network import build_model
from saved.checkpoints import read_checkpoint

CLASSES = ["run", "walk", "sit", "jump", "swim", "climb", "fall"]


def top5(line: dict, stream: str = "spatial") -> list[tuple[str, float]]:
    return [(entry["class"], entry["probability"]) for entry in line[stream]["top5"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """video.avi, c.pth.tar of the spatial and motion.pth.tar of the motion stream."""
    folder = tmp_path_factory.mktemp("export")
    rgb = default_preparation("rgb", 64, "squash").with_extraction({"sampling_rate": 2, "short_side": 72})
    save_network(folder / "c.pth.tar", rgb)
    made = {"method": "dis", "bound": 2.5, "short_side": 72, "quality": 85}
    flow = default_preparation("flow", 64, "squash", 4).with_extraction(made)
    save_network(folder / "motion.pth.tar", replace(flow, std=(0.06,)))  # so that the order of planes changes answers
    make_video(folder / "video.avi", 5)
    return folder


def save_network(path: Path, preparation: Preparation) -> None:
    """A network with batch norms that have seen pictures, and classes it tells apart."""
    torch.manual_seed(1)
    model = resnet18(num_classes=len(CLASSES))
    channels = preparation.channels
    if channels != 3:
        model.conv1 = torch.nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        for _ in range(3):
            pictures = torch.nn.functional.interpolate(2 * torch.randn(8, channels, 5, 6), (64, 64), mode="bicubic")
            model(pictures)
        model.fc.weight *= 8 if channels == 3 else 16
    about = {
        "format": "two-stream", "epoch": 3, "arch": "resnet18", "best_prec1": 50.0, "class_names": CLASSES,
        "preparation": preparation.as_dict(), "args": {"test_samples": 7, "test_views": 1, "test_starts": "spread"},
        "ema": None, "batch": 0,
    }  # fmt: skip
    torch.save({**about, "state_dict": model.state_dict()}, path)


@pytest.fixture(scope="module")
def said(folder, run) -> dict:
    """What predict.py says of the video by both streams."""
    flags = ("--spatial", folder / "c.pth.tar", "--motion", folder / "motion.pth.tar", "--json", "--device", "cpu")
    return json.loads(run("predict.py", folder / "video.avi", *flags).stdout)


def the_lines(kind: str) -> str:
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python {kind}\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") <= 18
    return code


def agree(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert expected[0][1] - expected[4][1] > 0.1  # which an even guess would not give
    for (_, one), (_, two) in zip(found, expected, strict=True):
        assert one == pytest.approx(two, abs=0.015)


@pytest.mark.parametrize(("kind", "suffix"), [("onnxruntime", "onnx"), ("torch", "pt2")])
def test_the_lines_in_the_docs_give_predicts_top_5(kind, suffix, folder, run, said, monkeypatch):
    if kind == "onnxruntime":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    run("recogniser/export.py", folder / "c.pth.tar", folder / f"model.{suffix}")
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(compile(the_lines(kind), kind, "exec"), found)
    agree(found["top5"], top5(said))


def test_the_motion_streams_lines_too(folder, run, said, monkeypatch):
    run("recogniser/export.py", folder / "motion.pth.tar", folder / "motion.pt2")
    lines = the_lines("torch").replace("model.", "motion.").splitlines(keepends=True)
    about = next(place for place, line in enumerate(lines) if line.startswith("about = "))
    last = next(place for place, line in enumerate(lines) if line.startswith("scores = "))
    between = "clips = torch.from_numpy(clips)\n"
    code = "".join(lines[: about + 1]) + the_lines("motion") + between + "".join(lines[last:])
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(compile(code, "motion", "exec"), found)
    assert found["clips"].shape == (7, 8, 64, 64)
    agree(found["top5"], top5(said, "motion"))


def test_the_librarys_lines_run(folder, said, monkeypatch, capsys):
    shutil.copy(folder / "c.pth.tar", folder / "spatial.pth.tar")
    monkeypatch.chdir(folder)
    exec(compile(the_lines("library"), "library", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["spatial", "motion"] and len(lines) == 6
    assert lines[0].split()[0] == said["class"]


def test_safetensors_is_tested_as_its_checkpoint_and_starts_a_training(tiny, run, tmp_path):
    pytest.importorskip("safetensors")
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", "--output", tmp_path / "out")
    run(*arguments, *SMALL, "--epochs", 1)
    predictions = tmp_path / "out/spatial_video_preds.pickle"
    wanted = pickle.loads(predictions.read_bytes())
    predictions.unlink()
    told = run("recogniser/export.py", tmp_path / "out/checkpoint.pth.tar", tmp_path / "m.safetensors").stdout
    assert "resnet18 for 101 classes" in told
    run(*arguments, "--ucf-list", "none", "--resume", tmp_path / "m.safetensors", "--evaluate")
    found = pickle.loads(predictions.read_bytes())
    assert found.keys() == wanted.keys()
    for name, logits in wanted.items():
        np.testing.assert_array_equal(found[name], logits)
    start = build_model("resnet18", 3, 101, str(tmp_path / "m.safetensors"))
    trained = read_checkpoint(tmp_path / "out/checkpoint.pth.tar").state_dict
    torch.testing.assert_close(start.state_dict(), trained, rtol=0, atol=0)


def test_weights_of_timm_start_both_streams(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(2)
    network = pytest.importorskip("timm").create_model("resnet18")
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight)  # timm starts some at zero, where nothing behind them shows
    save(network.state_dict(), tmp_path / "w.safetensors")
    clips = torch.randn(2, 3, 64, 64)
    theirs, ours = network.eval(), build_model("resnet18", 3, 1000, str(tmp_path / "w.safetensors")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(clips), theirs(clips), rtol=1e-4, atol=1e-4)
    motion = build_model("resnet18", 20, 5, str(tmp_path / "w.safetensors"))
    mean = network.conv1.weight.detach().mean(1, keepdim=True)  # TSN, section 3.2
    torch.testing.assert_close(motion.conv1.weight.detach(), mean.expand(-1, 20, -1, -1), rtol=1e-6, atol=1e-7)
