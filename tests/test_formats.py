"""What a file of ours says of itself is checked as it is read; what does not fit is one line that names the file."""

import argparse
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from prediction_files import CLASSES, write
from torchvision.models import resnet18

import run
from common.formats import read_json
from data import make_split
from dataloader.extracted import read_extraction, read_marker
from dataloader.frames import decode_gray, decode_rgb
from dataloader.packed import open_pack
from dataloader.preparation import Preparation
from report.outcome import read_learnt
from saved.checkpoint_reader import read_checkpoint
from saved.checkpoints import HEAD_FORMAT
from saved.feature_file import read_about, read_features, write_features
from saved.head_file import read_head
from saved.predictions import load_predictions
from utils import InputError, write_json

NAN, INF = float("nan"), float("inf")
LEARNT = {"weights": {"a": 1.0, "b": 2.0}, "temperature": 1.0, "learnt_on": {"videos": 1, "groups": 1, "paths": []}}
LABELS = {"a": 0, "b": 1}
NO_FLAGS = dict.fromkeys(("test_fraction", "seed", "groups"))
MARKER = {"settings": "0", "bytes": 9, "sha256": "0", "images": 1}
# file -> what it says, and keys with values that do not fit
FORMATS = {
    "extraction.json": ({"kind": "rgb", "version": 1, "settings": {"sampling_rate": 10, "short_side": 256}}, [
        ("settings.sampling_rate", -1), ("settings.short_side", "all"), ("settings.bound", 0.0),
        ("settings.bound", NAN), ("settings.quality", 101), ("version", 2), ("kind", "sound"), ("settings", []),
    ]),
    "run.json": ({"videos": "/v"}, [("videos", 3), ("videos", None)]),
    "make_split.json": ({"seed": 3}, [("seed", -1), ("test_fraction", 1.0), ("groups", 1)]),
    "pack.json": ({"format": "two-stream pack", "kind": "rgb", "shards": []}, [
        ("kind", "sound"), ("shards", [{"name": "shard-0", "bytes": -1}]), ("shards", [{"name": "../x", "bytes": 1}]),
    ]),
    "results.json": ({"learnt": LEARNT}, [
        ("learnt.temperature", 1e-320), ("learnt.temperature", NAN), ("learnt.weights", {"a": INF}),
        ("learnt.weights", {"a": 0.0}), ("learnt.weights", {}), ("learnt.learnt_on.videos", -1),
    ]),
    "predictions.json": ({"format": 1, "class_names": CLASSES, "labels": LABELS}, [
        ("labels.a", INF), ("labels.a", [0, 1, 0]), ("labels.a", 3), ("labels.a", 0.5), ("class_names", []),
        ("class_names", [1, 2, 3]), ("frames", {"root": 1}), ("format", 2),
    ]),
}  # fmt: skip


def read(path: Path) -> object:
    if path.name == "predictions.json":
        return load_predictions(write(path.parent, "spatial", {name: np.arange(3.0) for name in LABELS}))
    readers = {
        "extraction.json": read_extraction, "pack.json": lambda root: open_pack(root, "rgb"),
        "run.json": lambda root: read_json(root / "run.json", run.RunFile, ""),
        "make_split.json": lambda root: make_split.settings(argparse.Namespace(out=root, **NO_FLAGS)),
    }  # fmt: skip
    return readers[path.name](path.parent) if path.name in readers else read_learnt(path)


def one_line(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_values_that_do_not_fit_are_one_line(tmp_path, name):
    path = tmp_path / name
    content, wrong = FORMATS[name]
    path.write_text(json.dumps(content))
    assert read(path) is not None
    for place, value in wrong:
        changed = json.loads(json.dumps(content))
        *above, key = place.split(".")
        inner = changed
        for part in above:
            inner = inner[part]
        inner[key] = value
        path.write_text(json.dumps(changed))
        assert name in one_line(read, path), place
    for data in (b"[" * 200_000, b"", b"\xff\xfe", b"[]", b'{"a": ' + b"9" * 5000 + b"}", b'"x"'):
        path.write_bytes(data)
        assert name in one_line(read, path)


def test_a_marker_that_lies_is_no_marker(tmp_path):
    path = tmp_path / ".done/v.json"
    write_json(path, MARKER)
    assert read_marker(tmp_path, "v").images == 1 and read_marker(tmp_path, "n" * 300) is None
    for name, wrong in ("images", "1"), ("bytes", -1), ("settings", 0), ("mtime_ns", "now"), ("path", ["x"]):
        write_json(path, {**MARKER, name: wrong})
        assert read_marker(tmp_path, "v") is None, name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("test_resize", "stretch"), ("size", 0), ("size", 1 << 40), ("mean", (NAN,) * 3), ("std", (0.0,) * 3),
        ("std", (1e-320,) * 3), ("mean", (0.5, 0.5)), ("modality", "sound"), ("sampling_rate", -1),
        ("stack_length", 0), ("picture", 8.0), ("unheard_of", 1),
    ],
)  # fmt: skip
def test_a_preparation_is_checked(field, value):
    assert "update this program" in one_line(Preparation.from_dict, {**Preparation().as_dict(), field: value})


def head_file(weights: torch.Tensor, head: torch.Tensor) -> dict:
    """A file of heads.py, as short as it may be."""
    one = {"arch": "resnet18", "preparation": Preparation().as_dict(), "samples": 1, "views": 1,
           "pooling": ["layer4.mean"], "features": 2, "state_dict": {"conv1.weight": weights}}  # fmt: skip
    about = {"kind": "linear", "stream": "spatial", "over_time": "mean"}
    return {"format": HEAD_FORMAT, "class_names": ["a", "b"], "inputs": {"rgb": one}, "head": about,
            "state_dict": {"weight": head}}  # fmt: skip


def test_weights_that_are_not_finite_name_no_action(tmp_path):
    """Of a network, of a head and of what a head stands on."""
    state = resnet18(num_classes=3).state_dict()
    state["fc.weight"][1, 2] = NAN
    good, bad = torch.zeros(2, 2), torch.tensor([[0.0, INF], [0.0, 0.0]])
    for content, read_it, name in (
        (state, read_checkpoint, "fc.weight"),
        (head_file(good, bad), read_head, "weight"), (head_file(bad, good), read_head, "conv1.weight"),
    ):  # fmt: skip
        torch.save(content, tmp_path / "w.pth")
        assert f"w.pth: {name} holds NaN" in one_line(read_it, tmp_path / "w.pth")
    torch.save(head_file(good, good), tmp_path / "w.pth")
    assert read_head(tmp_path / "w.pth").kind == "linear"


def test_features_whose_compression_is_damaged(tmp_path):
    """As others pack them; read whole, and for what they say alone."""
    path = tmp_path / "f.npz"
    about = {"format": 1, "stream": "spatial", "dataset": "own", "split": "1", "class_names": CLASSES, "samples": 4,
             "preparation": Preparation().as_dict(), "views": 1, "pooling": ["layer4.mean"],
             "network": {"arch": "resnet18", "sha256": "0"}, "frames": {"root": "/", "folders": {}}}  # fmt: skip
    rng = np.random.default_rng(0)
    write_features(path, ["a", "b"], [0, 1], ["train", "test"], rng.normal(size=(2, 4, 8)).astype("f2"), about)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, part in parts.items():
            file.writestr(name, part)
        places = {info.filename: info.header_offset + info.compress_size // 2 for info in file.infolist()}
    assert read_features(path).videos == ["a", "b"] and read_about(path)["samples"] == 4
    whole = path.read_bytes()
    for name in ("about.npy", "features.npy"):
        path.write_bytes(whole[: places[name]] + bytes(60) + whole[places[name] + 60 :])
        assert "f.npz" in one_line(read_features, path)
        assert (read_about(path) is None) == (name == "about.npy")


def test_paths_that_are_not_utf8_come_back(tmp_path):
    root = b"/data/caf\xe9".decode("utf-8", "surrogateescape")
    frames = {"root": root, "folders": {}}
    write_json(tmp_path / "predictions.json", {"format": 1, "class_names": CLASSES, "labels": LABELS, "frames": frames})
    found = load_predictions(write(tmp_path, "spatial", {name: np.arange(3.0) for name in LABELS}))
    assert found.meta["frames"]["root"] == root


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded():
    """Headers alone, by the formats' own descriptions: a JPEG's SOF0, a PNG's IHDR."""
    sof = struct.pack(">HBHHB", 17, 8, 65500, 65500, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    sos = b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0])
    jpeg = b"\xff\xd8\xff\xc0" + sof + sos + b"\xff\xd9"
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    png += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "pixels" in one_line(decode_rgb, jpeg, "a.jpg")
    assert "pixels" in one_line(decode_gray, png, "a.png")
