"""recogniser/export.py: the file computes the network's logits for any number of clips, and says what they mean."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

pytest.importorskip("cv2")

from video_files import make_video

import predict
from dataloader.clips import clips_of
from dataloader.preparation import default_preparation, to_input
from engine.temporal_heads import LinearHead
from recogniser import export
from recogniser.clips import clips_of_video
from saved.head_file import write_head
from utils import InputError

SIZE = 64
CLASSES = ["run", "walk", "sit"]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A motion network of stacks of 3 flow pairs with batch norms that have seen data."""
    torch.manual_seed(0)
    model = resnet18(num_classes=len(CLASSES))
    model.conv1 = torch.nn.Conv2d(6, 64, 7, 2, 3, bias=False)
    with torch.no_grad():
        for _ in range(3):
            model(2 * torch.randn(8, 6, SIZE, SIZE) + 1)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pth.tar"
    about = {
        "format": "two-stream", "epoch": 3, "arch": "resnet18", "best_prec1": 50.0, "class_names": CLASSES,
        "preparation": default_preparation("flow", SIZE, "squash", 3).as_dict(), "ema": None,
        "args": {"test_samples": 25, "test_views": 2, "test_starts": "tsn"},
    }  # fmt: skip
    torch.save({**about, "state_dict": network.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(5, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def check(logits: np.ndarray, network: torch.nn.Module, clips: torch.Tensor) -> None:
    expected = network(clips).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # the clips are told apart
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_pt2(checkpoint, network, clips, tmp_path, run):
    said = run("recogniser/export.py", checkpoint, tmp_path / "m.pt2").stdout
    assert "clips (N, 6, 64, 64) -> logits (N, 3)" in said and "checked: on 3 random inputs" in said
    about = {"class_names.json": "", "preparation.json": "", "input.json": "", "protocol.json": ""}
    module = torch.export.load(tmp_path / "m.pt2", extra_files=about).module()
    check(module(clips).detach().numpy(), network, clips)
    assert json.loads(about["class_names.json"]) == CLASSES
    assert json.loads(about["preparation.json"])["stack_length"] == 3
    said = json.loads(about["input.json"])
    assert said["channels"] == ["x1", "y1", "x2", "y2", "x3", "y3"] and said["shape"] == ["N", 6, SIZE, SIZE]
    still = np.array(said["scale"]) * 127.5 + said["offset"]  # half grey is no motion
    np.testing.assert_allclose(still, np.zeros(6), atol=1e-6)
    protocol = json.loads(about["protocol.json"])
    assert (protocol["samples"], protocol["views"], protocol["starts"]) == (25, 2, "tsn")


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    """A linear head on grey differences and pictures of flow, as the fast way's of motion."""
    torch.manual_seed(1)
    trunks = {name: resnet18(num_classes=3).eval() for name in ("motion greydiff", "motion flow")}
    grey = default_preparation("greydiff", SIZE, "squash", 3).with_extraction({"short_side": 72})
    flow = default_preparation("flow", SIZE, "squash").with_extraction({"short_side": 72, "method": "dis"})
    inputs = {}
    for name, preparation in zip(trunks, (grey, replace(flow, picture=12.0)), strict=True):
        about = {
            "class_names": CLASSES, "dataset": "own", "split": 1, "network": {"arch": "resnet18"}, "samples": 4,
            "views": 2, "pooling": ["layer1.mean", "layer2.max"], "preparation": preparation.as_dict(),
        }  # fmt: skip
        inputs[name] = SimpleNamespace(about=about, values=np.zeros((1, 4, 192)))
    layer = LinearHead(2 * 192, len(CLASSES))
    path = tmp_path_factory.mktemp("head") / "checkpoint.pth.tar"
    about = {"kind": "linear", "stream": "motion", "choice": {}}
    states = {name: trunk.state_dict() for name, trunk in trunks.items()}
    write_head(path, about, layer.state_dict(), inputs, states)
    return path


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_head_is_exported_with_its_networks(kind, head, tmp_path, run):
    """The file answers as predict.py does, of clips that are prepared as its metadata say."""
    video = make_video(tmp_path / "video.avi", 3)
    model = predict.load(motion=head, device="cpu", amp="off")
    batches = clips_of_video(video, model.makers).batches
    clips = []
    for maker in model.makers:
        seen = clips_of(batches[maker.name], maker.preparation.modality, torch.device("cpu"))
        clips.append(to_input(seen, maker.preparation).unflatten(0, (1, 2, 4)))  # (N, views, samples, channels, H, W)
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        said = run("recogniser/export.py", head, tmp_path / "m.onnx").stdout
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        logits = session.run(["logits"], {name: one.numpy() for name, one in zip(names, clips, strict=True)})[0]
        about = json.loads(session.get_modelmeta().custom_metadata_map["input"])
    else:
        said = run("recogniser/export.py", head, tmp_path / "m.pt2").stdout
        files = {"input.json": ""}
        logits = torch.export.load(tmp_path / "m.pt2", extra_files=files).module()(*clips).detach().numpy()
        about, names = json.loads(files["input.json"]), ["clips_greydiff", "clips_flow"]
    assert "clips_flow (N, 2, 4, 3, 64, 64) -> logits (N, 3)" in said and "on 3 random inputs" in said
    np.testing.assert_allclose(logits[0], model(video).logits["motion"].mean(0), atol=2e-3)
    assert [one["name"] for one in about.values()] == names == ["clips_greydiff", "clips_flow"]
    assert about["motion greydiff"]["channels"] == ["grey2 - grey1", "grey3 - grey2", "grey4 - grey3"]


def test_a_file_with_other_logits_is_not_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1)
    with pytest.raises(InputError, match="m.pt2 was not written: it computes something else"):
        export.export(tmp_path / "m.pt2", checkpoint)
    assert not list(tmp_path.iterdir())


def test_errors_are_plain(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"m\.tflite: give the name of a \.onnx, a \.pt2 or a \.safetensors file"):
        export.export(tmp_path / "m.tflite", checkpoint)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs onnx; pip install onnx onnxscript onnxruntime"):
        export.export(tmp_path / "m.onnx", checkpoint)
