"""From checkpoints to streams: the networks, the names of their classes and the flow that they were trained on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.flow import PLAIN_METHODS, raft_flow, raft_weights, read_raft_weights, tvl1_flow
from dataloader.lists import load_split
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from engine.evaluation import InferenceNet
from engine.features import feature_net
from engine.temporal_heads import TEMPORAL, build_head
from network import trained_model
from recogniser.decoded import PAIRS_AT_ONCE, Flow
from recogniser.streams import ClipMaker, Stream, TrainedHead
from saved.checkpoints import Checkpoint, read_checkpoint
from saved.head_file import HeadFile, read_head
from utils import InputError, cpu_count

PER_SECOND = 2.5  # clips of a rolling window: more of them overlap in most of their frames


@dataclass(frozen=True)
class Wishes:
    """What a user may want otherwise than the checkpoints say; None: as they say."""

    samples: int | None = None  # clips per video or window
    views: int | None = None  # crops per clip
    sliding: float | None = None  # seconds of a rolling window
    flow_method: str | None = None
    raft_weights: str | None = None
    ucf_list: str | None = None  # folder of split lists that name the classes of foreign checkpoints


def load_streams(
    paths: Mapping[str, str], flow_order: str, wishes: Wishes, dtype: torch.dtype, device: torch.device
) -> tuple[list[Stream], list[str], list[TrainedHead]]:
    """The streams of these files, {"spatial": path, "motion": path, "head": path}, their classes' names and heads."""
    checkpoints: dict[str, Checkpoint] = {}
    heads: list[TrainedHead] = []
    pooling: dict[str, Sequence[str]] = {}
    for name, path in paths.items():
        file = read_head(path)
        if file is not None:
            belongs = "head" if file.stream == "both" else file.stream
            heads.append(load_head(file))
            checkpoints |= file.inputs
            pooling |= file.pooling
        else:
            checkpoint = read_checkpoint(path, flow_order=flow_order)
            belongs = "spatial" if checkpoint.preparation["modality"] == "rgb" else "motion"
            checkpoints[belongs] = checkpoint
        if name != belongs:
            raise InputError(f"--{name} {path} is a network of the {belongs} stream: give it to --{belongs}")
    names = choose_class_names(list(checkpoints.values()), wishes.ucf_list)
    streams = []
    for name, checkpoint in checkpoints.items():
        preparation = Preparation.from_dict(checkpoint.preparation)
        samples = wishes.samples or choose_samples(checkpoint.args.get("test_samples", 19), wishes.sliding)
        sampling = TestSampling(
            samples, wishes.views or checkpoint.args.get("test_views", 1), checkpoint.args.get("test_starts", "spread"),
            every=preparation.sampling_rate or 1 if preparation.modality == "rgb" else 1,
        )  # fmt: skip
        if sampling.views > 2 and preparation.test_resize == "squash":
            raise InputError(f"--views {sampling.views} cuts corners, but {checkpoint.path} was tested on whole images")
        flow = choose_flow(wishes, checkpoint.path, preparation, device) if preparation.modality == "flow" else None
        model = trained_model(checkpoint)
        if name in pooling:  # what it says are then features, for a head
            net = feature_net(model, preparation, pooling[name], dtype).to(device)
        else:
            net = InferenceNet(model, preparation, dtype).to(device)
        streams.append(Stream(net, ClipMaker(name, preparation, sampling, flow), device))
    return streams, names, heads


def load_head(file: HeadFile) -> TrainedHead:
    """The small network in the file. Raises InputError where this version doesn't know it, or it is damaged."""
    if file.kind not in ("linear", *TEMPORAL):
        raise InputError(f"{file.path} is a head of a kind {file.kind}, which this version does not know; update it")
    head = build_head(file.kind, file.features, len(file.class_names))
    try:
        head.load_state_dict(file.state_dict)
    except RuntimeError:
        raise InputError(f"{file.path} is a damaged head, its weights do not fit {file.kind}: train it again") from None
    return TrainedHead(file.kind if file.stream == "both" else file.stream, head.eval(), list(file.inputs))


def choose_samples(tested: int, seconds: float | None) -> int:
    """Clips of a video, or of a rolling window of so many seconds: as tested, but no more than PER_SECOND."""
    return tested if seconds is None else min(tested, max(5, round(PER_SECOND * seconds)))


def choose_class_names(checkpoints: Sequence[Checkpoint], lists: str | None) -> list[str]:
    """The classes in label order: a checkpoint's own, --ucf-list's, UCF101's for 101 classes, or just numbers."""
    first, last = checkpoints[0], checkpoints[-1]
    if first.num_classes != last.num_classes:
        raise InputError(
            f"{first.path} knows {first.num_classes} classes, {last.path} {last.num_classes}; "
            "give two streams of the same dataset"
        )
    given = {str(c.path): c.class_names for c in checkpoints if c.class_names is not None}
    if not given and lists:
        given[lists] = load_split(lists, 1).class_names
    for source, names in given.items():
        if len(names) != first.num_classes:
            raise InputError(f"{source} names {len(names)} classes, {first.path} knows {first.num_classes}")
        other_source, other = next(iter(given.items()))
        for label, (one, two) in enumerate(zip(other, names, strict=True)):
            if one.casefold() != two.casefold():
                raise InputError(
                    f"class {label} is {one} in {other_source} and {two} in {source}; "
                    "give two streams of the same dataset"
                )
    if given:
        return next(iter(given.values()))
    if first.num_classes == len(UCF101_CLASSES):
        return list(UCF101_CLASSES)
    note(f"{first.path} doesn't name its {first.num_classes} classes, so they are numbered; --ucf-list DIR names them")
    return [f"class {label}" for label in range(first.num_classes)]


def choose_flow(wishes: Wishes, path: Path, preparation: Preparation, device: torch.device) -> Flow:
    """The flow method that the network was trained on, or --flow-method."""
    trained = preparation.flow_method
    method = wishes.flow_method or trained or "tvl1"
    if trained is None and not wishes.flow_method:
        note("the motion checkpoint doesn't say what flow it was trained on: taking tvl1; see --flow-method")
    elif wishes.flow_method and trained and not trained.startswith(wishes.flow_method):
        note(f"the motion stream was trained on {trained} flow, this is {wishes.flow_method}")
    if method == "flo":
        raise InputError(f"{path} was trained on .flo files of an unknown method; choose one with --flow-method")
    if method.startswith("raft"):
        file = raft_weights(wishes.raft_weights or ("small" if trained == "raft_small" else "large"))
        try:  # a wrong file is said now
            read_raft_weights(file)
        except InputError:
            raise InputError(f"--raft-weights {file}: no file of torchvision's RAFT weights") from None
        raft = functools.partial(raft_flow, weights=file, device=str(device), batch_frames=PAIRS_AT_ONCE)
        return Flow(raft, on_gpu=device.type != "cpu")
    gpu = method == "tvl1" and device.type == "cuda"
    tvl1 = functools.partial(tvl1_flow, device=str(device) if gpu else "cpu")
    methods: dict[str, Any] = {"tvl1": tvl1, **PLAIN_METHODS}
    if method not in methods:
        raise InputError(f"{path} was trained on {method} flow, which is not among --flow-method's; choose one")
    return Flow(methods[method], 1 if gpu else cpu_count(), gpu)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
