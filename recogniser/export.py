"""Export a trained network as one file for other programs: ONNX or torch.export (checked), or safetensors.

  python recogniser/export.py CHECKPOINT OUT.onnx           or OUT.pt2, described inside (docs/export.md)
  python recogniser/export.py CHECKPOINT OUT.safetensors    weights and their description, for predict.py and --resume
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser
from dataloader.preparation import Preparation
from engine.features import PooledTrunk
from network import Network, trained_model
from recogniser.streams import load_head
from saved.checkpoints import HELD, Checkpoint, read_checkpoint, write_safetensors
from saved.foreign import FLOW_ORDERS
from saved.head_file import HeadFile, read_head
from utils import InputError, atomic_path, plural, run_main

Run = Callable[[Sequence[Tensor]], np.ndarray]
TOLERANCE = 1e-4  # relative to the largest logit; float32 sums in another order differ by about 1e-6


class HeadNetwork(nn.Module):
    """A head of heads.py and the networks that make its features, as one network for whole videos.

    Takes normalised clips (N, views, samples, channels, size, size) for each network. Returns logits (N,
    classes). Features are not rounded to float16 here; predict.py and training round them. Logits differ by
    about 1e-4.
    """

    def __init__(self, trunks: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.trunks, self.head = nn.ModuleList(trunks), head

    def forward(self, *clips: Tensor) -> Tensor:
        features = []
        for trunk, one in zip(self.trunks, clips, strict=True):
            of_clips = trunk(one.flatten(0, 2))  # (N * views * samples, F)
            features.append(of_clips.unflatten(0, one.shape[:3]).mean(1))  # (N, samples, F)
        return self.head(torch.cat(features, 2))


@dataclass(frozen=True)
class Exported:
    """A network to write, and the description stored in its file."""

    build: Callable[[bool], nn.Module]  # whether to fold batch norms -> the network
    inputs: dict[str, list[int]]  # name -> shape without the leading N
    about: dict[str, Any]  # what `describe` returns


def export(target: Path, checkpoint: Path, flow_order: str = "original") -> None:
    """Write a checkpoint's network, or a head with its networks, to `target`: .onnx, .pt2 or .safetensors.

    .onnx and .pt2 take "clips", float32 (N, channels, size, size) for any N, normalised as the checkpoint's
    preparation says. They return "logits", float32 (N, classes); their error is printed. A head's inputs are
    those of HeadNetwork. The files also hold each part of `describe` as JSON: ONNX as metadata, .pt2 as extra
    files (class_names.json and so on). Raises InputError if the file's logits differ from the network's;
    nothing is written then.
    """
    kind = target.suffix.lower()
    if kind not in (".onnx", ".pt2", ".safetensors"):
        raise InputError(f"{target}: give the name of a .onnx, a .pt2 or a .safetensors file")
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == ".onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{target} needs {package}; pip install onnx onnxscript onnxruntime, or export a .pt2")
    head = read_head(checkpoint)
    if kind == ".safetensors":
        if head is not None:
            raise InputError(f"{checkpoint} is a head with its networks: export a .onnx or a .pt2, or use it as it is")
        read = read_checkpoint(checkpoint, flow_order=flow_order)
        write_safetensors(target, read.state_dict, {name: getattr(read, name) for name in HELD})
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {read.arch} for {plural(read.num_classes, 'class')}")
        return
    made = of_head(head) if head else of_checkpoint(read_checkpoint(checkpoint, flow_order=flow_order))
    about = {name: json.dumps(part) for name, part in made.about.items()}
    with warnings.catch_warnings():  # the exporters warn about their own internals
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        data, run = (to_onnx if kind == ".onnx" else to_pt2)(made, about)
        logging.disable(logging.NOTSET)
    generator = torch.Generator().manual_seed(0)
    # N is 3 here; the network was traced with N = 2
    clips = [torch.randn(3, *shape, generator=generator) for shape in made.inputs.values()]
    with torch.inference_mode():
        expected = made.build(False)(*clips).numpy()
    difference, largest = float(np.abs(run(clips) - expected).max()), float(np.abs(expected).max())
    verdict = f"on 3 random inputs, logits differ by at most {difference:.1e}, the largest being {largest:.3g}"
    if not difference <= TOLERANCE * largest:
        raise InputError(f"{target} was not written: it computes something else; {verdict}")
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    shapes = ", ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in made.inputs.items())
    size = len(data) / 1e6
    print(f"{target}: {size:.1f} MB, {shapes} -> logits (N, {expected.shape[1]})\nchecked: {verdict}")


def network_of(read: Checkpoint, folded: bool) -> Network:
    model = trained_model(read)
    if folded:
        model.fold_batchnorm()
    return model


def of_checkpoint(read: Checkpoint) -> Exported:
    """Describe a stream's network, which takes single clips."""
    about = describe(read)
    return Exported(lambda folded: network_of(read, folded), {"clips": about["input"]["shape"][1:]}, about)


def of_head(file: HeadFile) -> Exported:
    """Describe a head with the networks of its features, which takes whole videos."""

    def build(folded: bool) -> nn.Module:
        trunks = []
        for name, read in file.inputs.items():
            model = network_of(read, folded)
            last = nn.Sequential(model.split("fc")[0], nn.Flatten())  # the input of the last layer
            trunks.append(PooledTrunk(model, file.pooling[name]) if model.stages else last)
        return HeadNetwork(trunks, load_head(file).head).eval()

    inputs, parts = {}, {}
    for name, read in file.inputs.items():
        about = parts[name] = describe(read, f"clips_{name.rpartition(' ')[2]}" if len(file.inputs) > 1 else "clips")
        shape = [about["protocol"]["views"], about["protocol"]["samples"], *about["input"]["shape"][1:]]
        about["input"]["shape"], inputs[about["input"]["name"]] = ["N", *shape], shape
        about["protocol"]["score"] = "softmax of the logits of a video: views and samples are within the network"
    if len(parts) == 1:
        return Exported(build, inputs, about)
    joined = {key: {name: about[key] for name, about in parts.items()} for key in ("preparation", "input", "protocol")}
    return Exported(build, inputs, {"class_names": file.class_names, **joined})


def describe(read: Checkpoint, name: str = "clips") -> dict[str, Any]:
    """Return what other programs have to know: class_names (null if unknown), preparation, input, protocol.

    `input` is the preparation in plain terms: the order of the channels, and for each the scale and offset
    that turn pixels from 0 to 255 into the network's input. `protocol` is how the network was evaluated. A
    head of several networks has one preparation, input and protocol for each.
    """
    preparation = Preparation.from_dict(read.preparation)
    scale, offset = preparation.affine
    repeats = preparation.channels // len(scale)
    numbers = range(1, preparation.stack_length + 1)
    orders = {
        "rgb": ["red", "green", "blue"],
        "flow": ["x", "y", "speed"] if preparation.picture else [f"{axis}{n}" for n in numbers for axis in "xy"],
        "rgbdiff": [f"{colour}{n + 1} - {colour}{n}" for n in numbers for colour in ("red", "green", "blue")],
        "greydiff": [f"grey{n + 1} - grey{n}" for n in numbers],
    }
    protocol = {"samples": ("test_samples", 19), "views": ("test_views", 1), "starts": ("test_starts", "spread")}
    return {
        "class_names": read.class_names,
        "preparation": read.preparation,
        "input": {
            "name": name, "dtype": "float32", "shape": ["N", preparation.channels, *[preparation.size] * 2],
            "channels": orders[preparation.modality], "range": "pixels from 0 to 255, times scale, plus offset",
            "scale": scale * repeats, "offset": offset * repeats,
        },
        "protocol": {
            **{name: read.args.get(flag, default) for name, (flag, default) in protocol.items()},
            "score": "the mean of a video's logits, then softmax",
        },
    }  # fmt: skip


def examples(made: Exported) -> tuple[tuple[Tensor, ...], tuple]:
    """Return inputs to trace the network with, and dynamic shapes: each first dimension may be any N."""
    clips = tuple(torch.zeros(2, *shape) for shape in made.inputs.values())
    each = tuple({0: Dim("N")} for _ in clips)
    return clips, (each,) if len(next(iter(made.inputs.values()))) == 5 else each  # HeadNetwork takes *clips


def to_onnx(made: Exported, about: Mapping[str, str]) -> tuple[bytes, Run]:
    """Return the content of an ONNX file, and a function that runs it."""
    import onnx
    import onnxruntime

    clips, shapes = examples(made)
    names = list(made.inputs)
    program = torch.onnx.export(
        made.build(True), clips, dynamo=True, input_names=names, output_names=["logits"], dynamic_shapes=shapes,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    file = program.model_proto
    onnx.helper.set_model_props(file, dict(about))
    data = file.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda clips: session.run(None, {n: one.numpy() for n, one in zip(names, clips, strict=True)})[0]


def to_pt2(made: Exported, about: Mapping[str, str]) -> tuple[bytes, Run]:
    """Return the content of a torch.export file, and a function that runs it."""
    clips, shapes = examples(made)
    program = torch.export.export(made.build(True), clips, dynamic_shapes=shapes)
    program.example_inputs = None  # not worth their megabytes
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
    file.seek(0)
    module = torch.export.load(file).module()
    return file.getvalue(), lambda clips: module(*clips).detach().numpy()


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what --resume reads, or a head")
    parser.add_argument("target", type=Path, metavar="OUT", help="what to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                        help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")
    args = parser.parse_args()
    export(args.target, args.checkpoint, args.flow_order)


if __name__ == "__main__":
    run_main(main)
