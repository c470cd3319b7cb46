"""Load streams from checkpoints: networks, class names, and the flow method that they were trained on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence

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
from recogniser.decoded import PAIRS_AT_ONCE, ClipMaker, Flow
from recogniser.streams import Stream, TrainedHead
from saved.checkpoints import Checkpoint, read_checkpoint
from saved.head_file import HeadFile, read_head
from utils import InputError, cpu_count

PER_SECOND = 2.5  # most clips per second of a rolling window; more would share most of their frames


def load_streams(
    paths: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device,
    *,
    flow_order: str = "original",
    samples: int | None = None,
    sliding: float | None = None,
    flow_method: str | None = None,
    raft_weights: str | None = None,
    ucf_list: str | None = None,
) -> tuple[list[Stream], list[str], list[TrainedHead]]:
    """Load {"spatial": path, "motion": path, "head": path}. Return the streams, class names, and heads.

    None: as the checkpoints say. `samples` is the number of clips per video or window, `sliding` a rolling
    window's seconds, and `ucf_list` a folder of split lists that name the classes of foreign checkpoints.
    """
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
            raise InputError(f"--{name} {path} is a network of the {belongs} stream: pass it to --{belongs}")
    names = choose_class_names(list(checkpoints.values()), ucf_list)
    streams = []
    for name, theirs in checkpoints.items():
        checkpoint = theirs.in_order_of(names)
        preparation = Preparation.from_dict(checkpoint.preparation)
        tested = checkpoint.args.get("test_samples", 19)
        if sliding:
            tested = min(tested, max(5, round(PER_SECOND * sliding)))
        views, starts = checkpoint.args.get("test_views", 1), checkpoint.args.get("test_starts", "spread")
        sampling = TestSampling(samples or tested, views, starts)
        is_flow = preparation.modality == "flow"
        flow = choose_flow(preparation, device, flow_method, raft_weights) if is_flow else None
        model = trained_model(checkpoint)
        if name in pooling:  # it returns features, for a head
            net = feature_net(model, preparation, pooling[name], dtype).to(device)
        else:
            net = InferenceNet(model, preparation, dtype).to(device)
        streams.append(Stream(net, ClipMaker(name, preparation, sampling, flow), device))
    return streams, names, heads


def load_head(file: HeadFile) -> TrainedHead:
    """Build the head of a file. Raises InputError if this version does not know its kind or it is damaged."""
    if file.kind not in ("linear", *TEMPORAL):
        raise InputError(f"{file.path} is a head of a kind {file.kind}, which this version does not know; update it")
    head = build_head(file.kind, file.features, len(file.class_names))
    try:
        head.load_state_dict(file.state_dict)
    except RuntimeError:
        raise InputError(f"{file.path} is a damaged head, its weights do not fit {file.kind}: train it again") from None
    return TrainedHead(file.kind if file.stream == "both" else file.stream, head.eval(), list(file.inputs))


def choose_class_names(checkpoints: Sequence[Checkpoint], lists: str | None) -> list[str]:
    """Return the classes in label order: the checkpoints' own, --ucf-list's, UCF101's if there are 101, or numbers.

    Raises InputError if the sources contradict each other.
    """
    given = {str(one.path): one.class_names for one in checkpoints if one.class_names is not None}
    if not given and lists:
        given[lists] = load_split(lists, 1).class_names
    if not given:
        count, source = checkpoints[0].num_classes, str(checkpoints[0].path)
        if count == len(UCF101_CLASSES):
            given[source] = list(UCF101_CLASSES)
        else:
            note(f"{source} does not name its {count} classes, so they are numbered; --ucf-list DIR names them")
            given[source] = [f"class {label}" for label in range(count)]
    first, names = next(iter(given.items()))
    for one in checkpoints:
        if one.num_classes != len(names):
            known = f"{first} has {len(names)} classes, {one.path} {one.num_classes}"
            raise InputError(f"{known}: pass streams of one dataset")
    for other, own in given.items():
        if [name.casefold() for name in own] != [name.casefold() for name in names]:
            raise InputError(f"the classes of {first} and {other} differ in name or order: pass streams of one dataset")
    return names


def choose_flow(
    preparation: Preparation, device: torch.device, chosen: str | None = None, weights: str | None = None
) -> Flow:
    """Return the flow method that the network was trained on, or the chosen one."""
    trained = preparation.flow_method
    method = chosen or trained or "tvl1"
    if trained is None and not chosen:
        note("the motion checkpoint does not say what flow it was trained on: taking tvl1; see --flow-method")
    elif trained and not trained.startswith(method):
        note(f"the motion stream was trained on {trained} flow, this is {method}")
    on_gpu = device.type != "cpu"
    if method.startswith("raft"):
        file = raft_weights(weights or ("small" if trained == "raft_small" else "large"))
        read_raft_weights(file)  # a wrong file is reported now
        raft = functools.partial(raft_flow, weights=file, device=str(device), batch_frames=PAIRS_AT_ONCE)
        return Flow(raft, on_gpu=on_gpu)
    on_gpu = method == "tvl1" and device.type == "cuda"
    tvl1 = functools.partial(tvl1_flow, device=str(device) if on_gpu else "cpu")
    methods: dict[str, Callable] = {"tvl1": tvl1, **PLAIN_METHODS}
    if method not in methods:  # by another version
        raise InputError(f"the motion stream was trained on {method} flow of unknown origin: pass --flow-method")
    return Flow(methods[method], 1 if on_gpu else cpu_count(), on_gpu)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
