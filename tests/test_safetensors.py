"""Weights in .safetensors files: ours with what they need to be tested, others' bare."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision.models import resnet18

from saved.checkpoint_reader import read_checkpoint, read_state_dict
from saved.checkpoints import write_safetensors
from saved.safe import load_checkpoint
from utils import InputError

safetensors = pytest.importorskip("safetensors.torch")
PREPARATION = {"modality": "flow", "size": 64, "test_resize": "center", "mean": (0.5,), "std": (0.25,),
               "stack_length": 3}  # fmt: skip
ABOUT = {"arch": "resnet18", "preparation": PREPARATION, "args": {"test_samples": 5}, "epoch": 7,
         "best_prec1": 62.5, "class_names": ["Hammering", "HammerThrow", "Überschlag"]}  # fmt: skip


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = resnet18(num_classes=3)
    net.conv1 = torch.nn.Conv2d(6, 64, 7, 2, 3, bias=False)
    return net.to(memory_format=torch.channels_last)


def test_ours_comes_back_with_all_it_says(tmp_path):
    state = network().state_dict()
    write_safetensors(tmp_path / "m.safetensors", state, ABOUT)
    found = read_checkpoint(tmp_path / "m.safetensors", "flow")
    assert (found.source, found.arch, found.in_channels, found.epoch) == ("two-stream", "resnet18", 6, 7)
    assert found.class_names == ABOUT["class_names"] and found.args == {"test_samples": 5} and found.best_prec1 == 62.5
    assert json.loads(json.dumps(PREPARATION)) == found.preparation
    for name, value in state.items():
        torch.testing.assert_close(found.state_dict[name], value, rtol=0, atol=0)
    # the format as its authors describe it: length of the header, the header, the bytes
    data = (tmp_path / "m.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    begin, end = header["fc.bias"]["data_offsets"]
    np.testing.assert_array_equal(
        np.frombuffer(data[8 + length :][begin:end], "<f4"), state["fc.bias"].numpy())
    assert json.loads(header["__metadata__"]["two-stream"])["class_names"] == ABOUT["class_names"]


def test_bare_weights_of_torchvision_and_timm(tmp_path):
    state = resnet18(num_classes=5).half().state_dict()
    safetensors.save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    found = read_checkpoint(tmp_path / "w.safetensors", "rgb")
    assert (found.source, found.num_classes, found.class_names) == ("torchvision", 5, None)
    weights = read_state_dict(tmp_path / "w.safetensors")
    assert weights["fc.weight"].dtype == torch.float32
    torch.testing.assert_close(weights["fc.weight"], state["fc.weight"].float(), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["cut", "header", "length", "json"])
def test_damage_is_one_line(tmp_path, change):
    path = tmp_path / "w.safetensors"
    safetensors.save_file({"a": torch.ones(9)}, path, {"two-stream": "[" * 5000} if change == "json" else None)
    data = path.read_bytes()
    bad = {"cut": data[:-1], "header": data[:9] + b"!" + data[10:], "length": b"\xff" * 7 + data[7:]}
    path.write_bytes(bad.get(change, data))
    with pytest.raises(InputError, match="w.safetensors (is not a checkpoint .*damaged|cannot be read)") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(tmp_path):
    safetensors.save_file({"a": torch.ones(9)}, tmp_path / "w.safetensors")
    code = ("import sys; sys.modules['safetensors'] = None\n"
            "from saved.safe import load_checkpoint; from utils import run_main\n"
            f"run_main(lambda: load_checkpoint({str(tmp_path / 'w.safetensors')!r}))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "pip install safetensors" in done.stderr
