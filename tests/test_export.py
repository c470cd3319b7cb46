"""recogniser/export.py: files that compute predict.py's answers, by the very lines of docs/export.md; safetensors."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from network_files import save_network
from torchvision.models import resnet18
from video_files import make_video

import predict
from dataloader.clips import clips_of
from dataloader.preparation import Preparation, default_preparation, to_input
from engine.temporal_heads import LinearHead
from network import build_model
from recogniser import export
from recogniser.clips import make_clips, whole_video
from saved.checkpoint_reader import read_checkpoint
from saved.head_file import write_head
from utils import InputError

CLASSES = ["run", "walk", "sit", "jump", "swim", "climb", "fall"]
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """video.avi, spatial.pth.tar and motion.pth.tar."""
    folder = tmp_path_factory.mktemp("export")
    tested = {"test_samples": 7}
    rgb = default_preparation("rgb", SIZE, "squash").with_extraction({"sampling_rate": 2, "short_side": 72})
    save_network(folder / "spatial.pth.tar", rgb, CLASSES, **tested)
    made = {"method": "dis", "bound": 2.5, "short_side": 72, "quality": 85}
    flow = default_preparation("flow", SIZE, "squash", 4).with_extraction(made)
    flow = replace(flow, std=(0.06,))  # so that the order of planes changes answers
    save_network(folder / "motion.pth.tar", flow, CLASSES, sharp=16, **tested)
    make_video(folder / "video.avi", 5)
    return folder


@pytest.fixture(scope="module")
def answer(folder):
    """What predict.py says of the video by both streams."""
    both = [folder / f"{name}.pth.tar" for name in ("spatial", "motion")]
    return predict.load(*both, device="cpu")(folder / "video.avi")


@pytest.fixture
def make(monkeypatch, capsys):
    """Run recogniser/export.py in this process; return what it printed."""

    def make(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
        export.main()
        return capsys.readouterr().out

    return make


# --- the lines of docs/export.md -----------------------------------------------------------------------


def the_lines(kind: str) -> str:
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python {kind}\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") <= 18
    return code


def agree(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert expected[0][1] - expected[4][1] > 0.1  # which an even guess would not give
    assert found == [(name, pytest.approx(share, abs=0.015)) for name, share in expected]


@pytest.mark.parametrize(("kind", "suffix"), [("onnxruntime", "onnx"), ("torch", "pt2")])
def test_the_lines_in_the_docs_give_predicts_top_5(kind, suffix, folder, make, answer, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnxruntime" else ():
        pytest.importorskip(package)
    make(folder / "spatial.pth.tar", folder / f"model.{suffix}")
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(the_lines(kind), found)
    agree(found["top5"], answer.top(5, "spatial"))


def test_the_motion_streams_lines_and_what_its_file_says(folder, make, answer, monkeypatch):
    said = make(folder / "motion.pth.tar", folder / "motion.pt2")
    assert "clips (N, 8, 64, 64) -> logits (N, 7)" in said and "checked: on 3 random inputs" in said
    first, opened, last = re.split(r"(about = .*\n)", the_lines("torch").replace("model.", "motion."))
    last = last[last.index("scores = ") :]
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(f"{first}{opened}{the_lines('motion')}clips = torch.from_numpy(clips)\n{last}", found)
    assert found["clips"].shape == (7, 8, SIZE, SIZE)
    agree(found["top5"], answer.top(5, "motion"))
    about = found["about"]
    assert about["class_names"] == CLASSES and about["preparation"]["stack_length"] == 4
    assert about["input"]["channels"] == ["x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"]
    still = np.array(about["input"]["scale"]) * 127.5 + about["input"]["offset"]  # half grey is no motion
    np.testing.assert_allclose(still, np.zeros(8), atol=1e-5)
    assert about["input"]["shape"] == ["N", 8, SIZE, SIZE] and about["protocol"]["samples"] == 7


def test_the_librarys_lines_run(folder, answer, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(the_lines("library"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["spatial", "motion"] and len(lines) == 6
    assert lines[0].split()[0] == answer.class_name


# --- heads, checks and other formats -------------------------------------------------------------------


def test_a_head_is_exported_with_its_networks(make, tmp_path):
    """As the fast way's of motion, on two inputs. The file answers as predict.py, by clips prepared as it says."""
    torch.manual_seed(1)
    trunks = {name: resnet18(num_classes=3).eval() for name in ("motion greydiff", "motion flow")}
    grey = default_preparation("greydiff", SIZE, "squash", 3).with_extraction({"short_side": 72})
    flow = default_preparation("flow", SIZE, "squash").with_extraction({"short_side": 72, "method": "dis"})
    inputs = {}
    for name, preparation in zip(trunks, (grey, replace(flow, picture=12.0)), strict=True):
        about = {
            "class_names": CLASSES[:3], "dataset": "own", "split": 1, "network": {"arch": "resnet18"}, "samples": 4,
            "views": 2, "pooling": ["layer1.mean", "layer2.max"], "preparation": preparation.as_dict(),
        }  # fmt: skip
        inputs[name] = SimpleNamespace(about=about, values=np.zeros((1, 4, 192)))
    head, about = tmp_path / "head.pth.tar", {"kind": "linear", "stream": "motion", "choice": {}}
    states = {name: trunk.state_dict() for name, trunk in trunks.items()}
    write_head(head, about, LinearHead(2 * 192, 3).state_dict(), inputs, states)

    video = make_video(tmp_path / "video.avi", 3)
    model = predict.load(motion=head, device="cpu", amp="off")
    batches = make_clips(whole_video(video, model.makers), model.makers).batches
    clips = []
    for maker in model.makers:
        seen = clips_of(batches[maker.name], maker.preparation.modality, torch.device("cpu"))
        clips.append(to_input(seen, maker.preparation).unflatten(0, (1, 2, 4)))  # (N, views, samples, C, H, W)
    said = make(head, tmp_path / "m.pt2")
    assert "clips_flow (N, 2, 4, 3, 64, 64) -> logits (N, 3)" in said and "on 3 random inputs" in said
    files = {"input.json": ""}
    logits = torch.export.load(tmp_path / "m.pt2", extra_files=files).module()(*clips).detach().numpy()
    np.testing.assert_allclose(logits[0], model(video).logits["motion"].mean(0), atol=2e-3)
    about = json.loads(files["input.json"])
    assert [one["name"] for one in about.values()] == ["clips_greydiff", "clips_flow"]
    assert about["motion greydiff"]["channels"] == ["grey2 - grey1", "grey3 - grey2", "grey4 - grey3"]


def test_what_is_not_written(folder, make, tmp_path, monkeypatch):
    checkpoint = folder / "spatial.pth.tar"
    with pytest.raises(InputError, match=r"m\.tflite: give the name of a \.onnx, a \.pt2 or a \.safetensors file"):
        make(checkpoint, tmp_path / "m.tflite")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="onnxruntime is missing: pip install onnx"):
        make(checkpoint, tmp_path / "m.onnx")
    monkeypatch.setattr(export, "to_pt2", lambda model, *_: (b"", lambda clips: model(*clips).detach().numpy() + 1))
    with pytest.raises(InputError, match=r"m\.pt2 was not written: it computes something else"):
        make(checkpoint, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_safetensors_is_read_as_its_checkpoint_and_starts_a_training(folder, make, tmp_path):
    pytest.importorskip("safetensors")
    checkpoint, target = folder / "spatial.pth.tar", tmp_path / "m.safetensors"
    assert "resnet18 for 7 classes" in make(checkpoint, target)
    theirs, ours = read_checkpoint(checkpoint), read_checkpoint(target)
    for name in ("class_names", "args", "arch", "epoch", "best_prec1"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert Preparation.from_dict(ours.preparation) == Preparation.from_dict(theirs.preparation)
    for state in (ours.state_dict, build_model("resnet18", 3, 7, str(target)).state_dict()):
        torch.testing.assert_close(state, theirs.state_dict, rtol=0, atol=0)


def test_weights_of_timm_are_a_stream_of_torchvisions_network(tmp_path):
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
