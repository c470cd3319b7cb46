"""Export a trained network as one file for other programs: ONNX or torch.export (checked), or safetensors.

  python recogniser/export.py CHECKPOINT OUT.onnx           or OUT.pt2, described inside (docs/export.md)
  python recogniser/export.py CHECKPOINT OUT.safetensors    weights and their description, for predict.py and --resume
"""

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser
from dataloader.preparation import Preparation
from engine.evaluation import PooledTrunk, fold_batchnorm, trained_model
from recogniser.streams import load_head
from saved.checkpoint_reader import HELD, Checkpoint, read_checkpoint
from saved.checkpoints import write_safetensors
from saved.foreign import FLOW_ORDERS
from saved.head_file import HeadFile, read_head
from utils import InputError, atomic_path, plural, run_main

Run = Callable[[Sequence[Tensor]], np.ndarray]
Clips = Mapping[str, Tensor]  # by the names of the inputs
TOLERANCE = 1e-4  # relative to the largest logit; float32 sums in another order differ by about 1e-6


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what --resume reads, or a head")
    parser.add_argument("target", type=Path, metavar="OUT", help="what to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--flow-order", choices=tuple(FLOW_ORDERS), default="original",
                        help="channel order of the original repo's motion checkpoint: see motion_cnn.py -h")
    args = parser.parse_args()
    kind = args.target.suffix.lower()
    if kind not in (".onnx", ".pt2", ".safetensors"):
        raise InputError(f"{args.target}: give the name of a .onnx, a .pt2 or a .safetensors file")
    head = read_head(args.checkpoint)
    networks = head.inputs if head else {"": read_checkpoint(args.checkpoint, flow_order=args.flow_order)}
    if kind != ".safetensors":
        export(args.target, networks, head)
    elif head:
        raise InputError(f"{args.checkpoint} is a head with its networks: export a .onnx or a .pt2, or use it as it is")
    else:
        read = networks[""]
        write_safetensors(args.target, read.state_dict, {name: getattr(read, name) for name in HELD})
        print(f"{args.target}: {read.arch} for {plural(read.num_classes, 'class')}")


def export(target: Path, networks: Mapping[str, Checkpoint], head: HeadFile | None = None) -> None:
    """Write a network, or a head with its networks, to `target`, a .onnx or .pt2 file, and check it.

    The file takes "clips", float32 (N, channels, size, size) for any N, normalised as the checkpoint's
    preparation says. It returns "logits", float32 (N, classes); their error is printed. A head's inputs are
    those of HeadNetwork. The file also holds each part of `describe` as JSON: ONNX as metadata, .pt2 as extra
    files (class_names.json and so on). Raises InputError if the file's logits differ from the network's;
    nothing is written then.
    """
    parts = {}
    for name, read in networks.items():
        parts[name] = describe(read, f"clips_{name.rpartition(' ')[2]}" if len(networks) > 1 else "clips", bool(head))
    about = next(iter(parts.values()))
    if len(parts) > 1:
        each = {key: {name: part[key] for name, part in parts.items()} for key in about}
        about = {**each, "class_names": about["class_names"]}
    shapes = {part["input"]["name"]: part["input"]["shape"][1:] for part in parts.values()}
    traced = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
    any_count = tuple({0: Dim("N")} for _ in traced)  # the first dimension of each
    dynamic = (any_count,) if head else any_count  # HeadNetwork takes *clips
    to_bytes = to_onnx if target.suffix.lower() == ".onnx" else to_pt2
    with warnings.catch_warnings():  # the exporters warn about their own internals
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        model = build(networks, head, folded=True)
        metadata = {name: json.dumps(part) for name, part in about.items()}
        data, run = to_bytes(model, traced, dynamic, metadata)
        logging.disable(logging.NOTSET)
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(3, *shape, generator=generator) for shape in shapes.values()]  # N was 2 in tracing
    with torch.inference_mode():
        expected = build(networks, head, folded=False)(*clips).numpy()
    difference, largest = float(np.abs(run(clips) - expected).max()), float(np.abs(expected).max())
    verdict = f"on 3 random inputs, logits differ by at most {difference:.1e}, the largest being {largest:.3g}"
    if not difference <= TOLERANCE * largest:
        raise InputError(f"{target} was not written: it computes something else; {verdict}")
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    taken = ", ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in shapes.items())
    print(f"{target}: {len(data) / 1e6:.1f} MB, {taken} -> logits (N, {expected.shape[1]})\nchecked: {verdict}")


class HeadNetwork(nn.Module):
    """A head of heads.py and the networks that make its features, as one network for whole videos.

    Takes normalised clips (N, views, samples, channels, size, size) for each network, returns logits (N,
    classes). predict.py and training round features to float16; without that, logits differ by about 1e-4.
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


def build(networks: Mapping[str, Checkpoint], head: HeadFile | None, folded: bool) -> nn.Module:
    """Build the network, or a head with its networks; `folded`: batch norms folded into the convolutions."""
    models: dict[str, Any] = {name: trained_model(read) for name, read in networks.items()}
    for model in models.values() if folded else ():
        if model.stages:
            fold_batchnorm(model)
    if not head:
        return models[""]
    trunks = [PooledTrunk(m, head.pooling[name]) if m.stages else m.below_fc() for name, m in models.items()]
    return HeadNetwork(trunks, load_head(head).head).eval()


def describe(read: Checkpoint, name: str, whole_videos: bool) -> dict[str, Any]:
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
    shape = [preparation.channels, preparation.size, preparation.size]
    score = "the mean of a video's logits, then softmax"
    if whole_videos:
        shape = [read.sampling.views, read.sampling.samples, *shape]
        score = "softmax of the logits of a video: views and samples are within the network"
    taken = {
        "name": name, "dtype": "float32", "shape": ["N", *shape], "channels": orders[preparation.modality],
        "range": "pixels from 0 to 255, times scale, plus offset",
        "scale": scale * repeats, "offset": offset * repeats,
    }  # fmt: skip
    protocol = {**read.sampling.about(), "score": score}
    return {"class_names": read.class_names, "preparation": read.preparation, "input": taken, "protocol": protocol}


def to_onnx(model: nn.Module, clips: Clips, dynamic: tuple, about: Mapping[str, str]) -> tuple[bytes, Run]:
    """Return the content of an ONNX file traced with `clips`, and a function that runs it."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        needed = "pip install onnx onnxscript onnxruntime, or export a .pt2"
        raise InputError(f"{error.name} is missing: {needed}") from None
    program = torch.onnx.export(
        model, tuple(clips.values()), dynamo=True, input_names=list(clips), output_names=["logits"],
        dynamic_shapes=dynamic, verbose=False,
    )  # fmt: skip
    assert program is not None
    file = program.model_proto
    onnx.helper.set_model_props(file, dict(about))
    data = file.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda given: session.run(None, dict(zip(clips, (one.numpy() for one in given), strict=True)))[0]


def to_pt2(model: nn.Module, clips: Clips, dynamic: tuple, about: Mapping[str, str]) -> tuple[bytes, Run]:
    """Return the content of a torch.export file traced with `clips`, and a function that runs it."""
    program = torch.export.export(model, tuple(clips.values()), dynamic_shapes=dynamic)
    program.example_inputs = None  # not worth their megabytes
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
    file.seek(0)
    module = torch.export.load(file).module()
    return file.getvalue(), lambda given: module(*given).detach().numpy()


if __name__ == "__main__":
    run_main(main)
