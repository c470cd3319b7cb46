"""A trained network as one file for other programs: ONNX, torch.export or safetensors, checked against the network.

  python recogniser/export.py CHECKPOINT OUT.onnx           or OUT.pt2: what it takes stands in it (docs/export.md)
  python recogniser/export.py CHECKPOINT OUT.safetensors    weights and their description, for predict.py and --resume
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from recogniser.loading import load_head
from saved.checkpoints import HELD, Checkpoint, read_checkpoint, write_safetensors
from saved.foreign import FLOW_ORDERS
from saved.head_file import HeadFile, read_head
from utils import InputError, atomic_path, plural, run_main

TOLERANCE = 1e-4  # of the largest logit; other orders of summing in float32 make differences of about 1e-6


class HeadNetwork(nn.Module):
    """A head of heads.py with the networks that make its features, as one network of whole videos.

    Takes for each network normalised clips (N, views, samples, channels, size, size), and returns logits (N, classes).
    Features are not rounded to float16 here, which predict.py does as in training: logits differ by about 1e-4.
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
    """A network to write, and what its file says of it."""

    build: Callable[[bool], nn.Module]  # whether batch norms are folded -> the network
    inputs: dict[str, list[int]]  # name -> shape of one of N
    about: dict[str, Any]  # what `describe` returns
    classes: int


def export(target: Path, checkpoint: Path, flow_order: str = "original") -> None:
    """Write a checkpoint's network, or a head with its networks, to `target`, .onnx, .pt2 or .safetensors.

    .onnx and .pt2 take "clips", float32 (N, channels, size, size), normalised as the checkpoint's preparation says,
    for any N, and give "logits", float32 (N, classes); how far these are off is printed. A head's are as in
    HeadNetwork. What `describe` returns stands in them, each part as JSON: in ONNX as metadata, in .pt2 as extra files
    class_names.json and so on. Raises InputError where the file's logits are others than the network's; nothing is
    written then.
    """
    kind = target.suffix.lower()
    if kind not in (".onnx", ".pt2", ".safetensors"):
        raise InputError(f"{target}: give the name of a .onnx, a .pt2 or a .safetensors file")
    for package in ("onnx", "onnxscript") if kind == ".onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{target} needs {package}; pip install onnx onnxscript onnxruntime, or export a .pt2")
    head = read_head(checkpoint)
    if kind == ".safetensors":
        if head is not None:
            raise InputError(f"{checkpoint} is a head with its networks: export a .onnx or a .pt2, or use it as it is")
        return _safetensors(target, read_checkpoint(checkpoint, flow_order=flow_order))
    made = of_checkpoint(read_checkpoint(checkpoint, flow_order=flow_order)) if head is None else of_head(head)
    about = {name: json.dumps(part) for name, part in made.about.items()}
    examples = tuple(torch.zeros(2, *shape) for shape in made.inputs.values())
    write, open_file = (_onnx, _run_onnx) if kind == ".onnx" else (_pt2, _run_pt2)
    with _quiet():
        data = write(made.build(True), list(made.inputs), examples, about)
    shapes = ", ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in made.inputs.items())
    if kind == ".onnx" and importlib.util.find_spec("onnxruntime") is None:
        verdict = "not checked: that needs onnxruntime; pip install onnxruntime"
    else:
        verdict = f"checked: {_check(open_file(data), made, target)}"
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    print(f"{target}: {len(data) / 1e6:.1f} MB, {shapes} -> logits (N, {made.classes})\n{verdict}")


def network_of(read: Checkpoint, folded: bool) -> Network:
    model = trained_model(read)
    if folded:
        model.fold_batchnorm()
    return model


def of_checkpoint(read: Checkpoint) -> Exported:
    """A stream's network, of clips one by one."""

    shape = [read.in_channels, *[read.preparation["size"]] * 2]
    return Exported(lambda folded: network_of(read, folded), {"clips": shape}, describe(read), read.num_classes)


def of_head(file: HeadFile) -> Exported:
    """A head with the networks of its features, of whole videos."""

    def build(folded: bool) -> nn.Module:
        trunks = []
        for name, read in file.inputs.items():
            model = network_of(read, folded)
            last = nn.Sequential(model.split("fc")[0], nn.Flatten())  # what the last layer sees
            trunks.append(PooledTrunk(model, file.pooling[name]) if model.stages else last)
        return HeadNetwork(trunks, load_head(file).head).eval()

    names = {name: f"clips_{name.rpartition(' ')[2]}" for name in file.inputs} if len(file.inputs) > 1 else {}
    inputs, parts = {}, {}
    for name, read in file.inputs.items():
        about = describe(read, names.get(name, "clips"))
        per_video = [about["protocol"]["views"], about["protocol"]["samples"]]
        inputs[about["input"]["name"]] = [*per_video, *about["input"]["shape"][1:]]
        about["input"]["shape"] = ["N", *inputs[about["input"]["name"]]]
        about["protocol"]["score"] = "softmax of the logits of a video: views and samples are within the network"
        parts[name] = about
    if len(parts) == 1:
        return Exported(build, inputs, next(iter(parts.values())), len(file.class_names))
    joined = {key: {name: about[key] for name, about in parts.items()} for key in ("preparation", "input", "protocol")}
    return Exported(build, inputs, {"class_names": file.class_names, **joined}, len(file.class_names))


def describe(read: Checkpoint, name: str = "clips") -> dict[str, Any]:
    """What another program has to know: class_names (null where unknown), preparation, input and protocol.

    `input` is the preparation in plain terms: the order of the channels, and the scale and offset of each that make
    the network's input of pixels from 0 to 255. `protocol` is how the network was tested. A head of several networks
    has one preparation, input and protocol for each.
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


def _safetensors(target: Path, read: Checkpoint) -> None:
    write_safetensors(target, read.tested_state, {name: getattr(read, name) for name in HELD})
    back = read_checkpoint(target).tested_state
    if not all(torch.equal(value, back[name]) for name, value in read.tested_state.items()):
        target.unlink()
        raise InputError(f"{target} was not kept: its weights came back as others; is the disk sound?")
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {read.arch} for {plural(read.num_classes, 'class')}\nchecked: the same weights")


def _check(run: Callable[[Sequence[Tensor]], np.ndarray], made: Exported, target: Path) -> str:
    """Compare the file's logits with the network's, on a number of clips that it wasn't traced with."""
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(3, *shape, generator=generator) for shape in made.inputs.values()]
    with torch.inference_mode():
        expected = made.build(False)(*clips).numpy()
    difference, largest = float(np.abs(run(clips) - expected).max()), float(np.abs(expected).max())
    what = "videos" if len(next(iter(made.inputs.values()))) == 5 else "clips"
    text = f"on 3 random {what}, logits differ by at most {difference:.1e}, the largest being {largest:.3g}"
    if not difference <= TOLERANCE * largest:
        raise InputError(f"{target} was not written: it computes something else; {text}")
    return text


def _onnx(model: nn.Module, names: list[str], clips: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    import onnx

    program = torch.onnx.export(
        model, clips, dynamo=True, input_names=names, output_names=["logits"], dynamic_shapes=_any_number(model, clips),
        verbose=False,
    )  # fmt: skip
    assert program is not None
    file = program.model_proto
    onnx.helper.set_model_props(file, about)
    return file.SerializeToString()


def _run_onnx(data: bytes) -> Callable[[Sequence[Tensor]], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda clips: session.run(["logits"], {n: one.numpy() for n, one in zip(names, clips, strict=True)})[0]


def _pt2(model: nn.Module, _: list[str], clips: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    program = torch.export.export(model, clips, dynamic_shapes=_any_number(model, clips))
    program.example_inputs = None  # not worth their megabytes
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
    return file.getvalue()


def _any_number(model: nn.Module, clips: tuple[Tensor, ...]) -> tuple:
    """The first dimension of each input is N."""
    each = tuple({0: Dim("N")} for _ in clips)
    return (each,) if isinstance(model, HeadNetwork) else each  # which takes *clips


def _run_pt2(data: bytes) -> Callable[[Sequence[Tensor]], np.ndarray]:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda clips: module(*clips).detach().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks to their own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


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
