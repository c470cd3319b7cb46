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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser
from dataloader.preparation import Preparation
from network import Network, trained_model
from saved.checkpoints import FLOW_ORDERS, HELD, Checkpoint, read_checkpoint, write_safetensors
from utils import InputError, atomic_path, plural, run_main

TOLERANCE = 1e-4  # of the largest logit; other orders of summing in float32 make differences of about 1e-6


def export(target: Path, checkpoint: Path, flow_order: str = "original") -> None:
    """Write a checkpoint's network to `target`, .onnx, .pt2 or .safetensors.

    .onnx and .pt2 take "clips", float32 (N, channels, size, size), normalised as the checkpoint's preparation says,
    for any N, and give "logits", float32 (N, classes); how far these are off is printed. What `describe` returns
    stands in them, each part as JSON: in ONNX as metadata, in .pt2 as extra files class_names.json and so on.
    Raises InputError where the file's logits are others than the network's; nothing is written then.
    """
    kind = target.suffix.lower()
    if kind == ".safetensors":
        return _safetensors(target, read_checkpoint(checkpoint, flow_order=flow_order))
    if kind not in (".onnx", ".pt2"):
        raise InputError(f"{target}: give the name of a .onnx, a .pt2 or a .safetensors file")
    for package in ("onnx", "onnxscript") if kind == ".onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{target} needs {package}; pip install onnx onnxscript onnxruntime, or export a .pt2")
    read = read_checkpoint(checkpoint, flow_order=flow_order)
    about = {name: json.dumps(part) for name, part in describe(read).items()}
    shape = (read.in_channels, read.preparation["size"], read.preparation["size"])
    folded = trained_model(read)
    folded.fold_batchnorm()
    write, open_file = (_onnx, _run_onnx) if kind == ".onnx" else (_pt2, _run_pt2)
    with _quiet():
        data = write(folded, torch.zeros(2, *shape), about)
    size = f"{len(data) / 1e6:.1f} MB, clips (N, {', '.join(map(str, shape))}) -> logits (N, {read.num_classes})"
    if kind == ".onnx" and importlib.util.find_spec("onnxruntime") is None:
        verdict = "not checked: that needs onnxruntime; pip install onnxruntime"
    else:
        verdict = f"checked: {_check(open_file(data), trained_model(read), shape, target)}"
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    print(f"{target}: {size}\n{verdict}")


def describe(read: Checkpoint) -> dict[str, Any]:
    """What another program has to know: class_names (null where unknown), preparation, input and protocol.

    `input` is the preparation in plain terms: the order of the channels, and the scale and offset of each that make
    the network's input of pixels from 0 to 255. `protocol` is how the network was tested.
    """
    preparation = Preparation.from_dict(read.preparation)
    scale, offset = preparation.affine
    repeats = preparation.channels // len(scale)
    numbers = range(1, preparation.stack_length + 1)
    orders = {
        "rgb": ["red", "green", "blue"],
        "flow": ["x", "y", "speed"] if preparation.picture else [f"{axis}{n}" for n in numbers for axis in "xy"],
        "rgbdiff": [f"{colour}{n + 1} - {colour}{n}" for n in numbers for colour in ("red", "green", "blue")],
    }
    protocol = {"samples": ("test_samples", 19), "views": ("test_views", 1), "starts": ("test_starts", "spread")}
    return {
        "class_names": read.class_names,
        "preparation": read.preparation,
        "input": {
            "name": "clips", "dtype": "float32", "shape": ["N", preparation.channels, *[preparation.size] * 2],
            "channels": orders[preparation.modality], "range": "pixels from 0 to 255, times scale, plus offset",
            "scale": scale * repeats, "offset": offset * repeats,
        },
        "protocol": {
            **{name: read.args.get(flag, default) for name, (flag, default) in protocol.items()},
            "score": "the mean of a video's logits, then softmax",
        },
    }  # fmt: skip


def _safetensors(target: Path, read: Checkpoint) -> None:
    if read.source == "tsn-pytorch" and read.num_classes == 51:  # see Checkpoint.in_order_of
        raise InputError(f"{read.path}: the order of its HMDB51 classes shows only beside lists; use it as it is")
    write_safetensors(target, read.tested_state, {name: getattr(read, name) for name in HELD})
    back = read_checkpoint(target).tested_state
    if not all(torch.equal(value, back[name]) for name, value in read.tested_state.items()):
        target.unlink()
        raise InputError(f"{target} was not kept: its weights came back as others; is the disk sound?")
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, {read.arch} for {plural(read.num_classes, 'class')}\nchecked: the same weights")


def _check(run: Callable[[Tensor], np.ndarray], model: Network, shape: tuple[int, ...], target: Path) -> str:
    """Compare the file's logits with the network's, on a number of clips that it wasn't traced with."""
    clips = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(clips).numpy()
    difference, largest = float(np.abs(run(clips) - expected).max()), float(np.abs(expected).max())
    text = f"on {len(clips)} random clips, logits differ by at most {difference:.1e}, the largest being {largest:.3g}"
    if not difference <= TOLERANCE * largest:
        raise InputError(f"{target} was not written: it computes something else; {text}")
    return text


def _onnx(model: Network, clips: Tensor, about: dict[str, str]) -> bytes:
    import onnx

    program = torch.onnx.export(
        model, (clips,), dynamo=True, input_names=["clips"], output_names=["logits"],
        dynamic_shapes=({0: Dim("N")},), verbose=False,
    )  # fmt: skip
    assert program is not None
    file = program.model_proto
    onnx.helper.set_model_props(file, about)
    return file.SerializeToString()


def _run_onnx(data: bytes) -> Callable[[Tensor], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda clips: session.run(["logits"], {"clips": clips.numpy()})[0]


def _pt2(model: Network, clips: Tensor, about: dict[str, str]) -> bytes:
    program = torch.export.export(model, (clips,), dynamic_shapes=({0: Dim("N")},))
    program.example_inputs = None  # not worth their megabytes
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
    return file.getvalue()


def _run_pt2(data: bytes) -> Callable[[Tensor], np.ndarray]:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda clips: module(clips).detach().numpy()


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
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of any project that --resume reads")
    parser.add_argument("target", type=Path, metavar="OUT", help="what to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                        help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")
    args = parser.parse_args()
    export(args.target, args.checkpoint, args.flow_order)


if __name__ == "__main__":
    run_main(main)
