"""Train small networks on pooled features of one or both streams, in seconds to minutes, and write predictions.

  python spatial_cnn.py --features rgb.npz       first: features of all videos, by ImageNet's or --resume's weights
  python motion_cnn.py --features flow.npz
  python heads.py --spatial rgb.npz --motion flow.npz

Features of several inputs of one stream, such as flow and greydiff, are joined: --motion flow.npz grey.npz.
Heads: linear is logistic regression on features averaged over time, for each stream and (joined) for both
together. If features come from two stages of a network, linear takes both or only the first. Classes have equal
weight, however many videos they have. ts-lstm and inception (Ma et al. 2017, arXiv 1703.10667) see both streams'
features as a sequence over time. Stages, the penalty C or the epochs are chosen on training videos
alone, by folds that keep the videos of one recording or person together. A check (look_alikes) prints the
accuracy that remains when clips that look alike are kept on one side of the split.
"""

import argparse
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.accuracy import accuracy
from common.commandline import ArgumentParser, bounded
from common.progress import progress_bar
from dataloader.lists import Split, load_split
from dataloader.names import first_few
from dataloader.preparation import Preparation
from engine.crossfit import Fit, fit_first_or_all, fit_linear, fit_temporal, look_alikes
from engine.evaluation import feature_count, trained_model
from engine.features import trunk_hash
from engine.owner import owned
from engine.temporal_heads import TEMPORAL
from network import Network, build_model
from report.outcome import gap_note, look_alike_note
from saved.checkpoint_reader import read_checkpoint
from saved.feature_file import Features, read_features, with_split
from saved.head_file import write_head
from saved.predictions import write_predictions
from utils import InputError, run_main, set_up_device

HEADS = ("linear", *TEMPORAL)
Inputs = dict[str, Features]  # of one head, by name: the stream, or "motion flow" and "motion greydiff"


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument_group("features").add_argument
    add("--spatial", nargs="+", default=[], metavar="NPZ", help="what spatial_cnn.py --features wrote")
    add("--motion", nargs="+", default=[], metavar="NPZ",
        help="what motion_cnn.py --features wrote; one of the two streams is enough")
    add("--ucf-list", metavar="DIR",
        help="split lists, or none for UCF101's group rule: for what recogniser/video_features.py wrote, which has no "
             "split yet")
    add("--split", default="1", metavar="N", help="number of the split in --ucf-list")
    add = parser.add_argument_group("heads").add_argument
    add("--head", nargs="+", choices=HEADS, default=["linear"], metavar="HEAD",
        help=f"one or several of {', '.join(HEADS)}")
    add("--folds", type=bounded(int, 2), default=5, help="parts of the training videos, each held out once")
    add("--seed", type=bounded(int, 0, 2**32 - 1), default=0, help="for the folds and for training")
    add("--output", type=Path, default=Path("record/heads"), metavar="DIR",
        help="for HEAD/STREAM/ with predictions, checkpoint and val/ (held-out predictions)")
    add("--device", default="auto", help="for ts-lstm and inception: auto, cpu, cuda, cuda:N or mps")
    args = parser.parse_args()
    if not (args.spatial or args.motion):
        raise InputError("no features: name a file with --spatial NPZ, --motion NPZ or both")
    args.head = [head for head in HEADS if head in args.head]
    return args


def main() -> int:
    args = parse_arguments()
    args.device = set_up_device(args.device)
    streams = load_streams(args)
    networks = {name: load_network(one) for name, one in together(streams).items()}
    alike = check_look_alikes(args, streams)
    with owned(args.output):
        rows: list[Row] = []
        for head in args.head:
            alone = [{stream: own} for stream, own in streams.items()] if head == "linear" else [streams]
            rows += [fit_and_write(args, head, own, networks, alike) for own in alone]
            if len(alone) == 2:
                rows += [average(rows[-2:]), fit_and_write(args, head, streams, networks, alike)]
    print(table(rows))
    if alike:
        print(look_alike_note(alike))
    print(next_command(args, rows))
    return 0


def load_streams(args: argparse.Namespace) -> dict[str, Inputs]:
    """Load the flags' features by stream. All have the same videos with the same labels in the same order."""
    streams: dict[str, Inputs] = {}
    split: Split | None = None
    for stream, paths in (("spatial", args.spatial), ("motion", args.motion)):
        for path in paths:
            one = read_features(path)
            if args.ucf_list:
                lists = None if args.ucf_list == "none" else args.ucf_list
                split = split or load_split(lists, args.split, one.videos, verbose=False)
                one = with_split(one, split)
            elif not len(one.labels):
                raise InputError(f"{path} has features of video files, in no split: name split lists with --ucf-list")
            if one.about["stream"] != stream:
                raise InputError(f"--{stream} {path} holds features of the {one.about['stream']} stream")
            name = stream if len(paths) == 1 else f"{stream} {one.about['preparation']['modality']}"
            if name in streams.setdefault(stream, {}):
                raise InputError(f"{path} and {streams[stream][name].path} are both of {name}: name one of them")
            streams[stream][name] = one
    everything = list(together(streams).values())
    first = everything[0]
    for one in everything:
        if twice := sorted(video for video, count in Counter(one.videos).items() if count > 1):
            raise InputError(f"{one.path} holds videos twice, {first_few(twice)}: each is in training or in "
                             "the test, once; mend the lists and extract the features again")  # fmt: skip
        if {"train", "test"} - set(one.subset.tolist()):
            raise InputError(f"{one.path} lacks training or test videos: of the lists, or of --evaluate's features")
        same = first.videos == one.videos and first.about["class_names"] == one.about["class_names"]
        if not same or (first.labels != one.labels).any() or (first.subset != one.subset).any():
            raise InputError(f"{first.path} and {one.path} are of different splits; extract both with one list")
    joined = streams.values() if args.head == ["linear"] else [together(streams)]
    for files in joined:
        if len({one.values.shape[1] for one in files.values()}) > 1:
            paths = " and ".join(str(one.path) for one in files.values())
            raise InputError(f"{paths} differ in --test-samples: over time they don't match")
    return streams


def together(streams: Mapping[str, Inputs]) -> Inputs:
    return {name: one for own in streams.values() for name, one in own.items()}


def load_network(features: Features) -> Network:
    """Load the network that computed the features, in evaluation mode, to store it with the head."""
    about, preparation = features.about["network"], Preparation.from_dict(features.about["preparation"])
    if "checkpoint" in about:
        model = trained_model(read_checkpoint(about["checkpoint"], flow_order=about["flow_order"]))
    else:
        classes = about.get("classes", len(features.about["class_names"]))
        torch.manual_seed(about.get("seed", 0))  # for random weights
        weights = about.get("weights", "none")
        model = build_model(about["arch"], preparation.channels, classes, weights, size=preparation.size)
        model.eval()
    if trunk_hash(model) != about["sha256"]:
        where = about.get("checkpoint") or weights
        raise InputError(f"{features.path} was made by another network than {where} is now; extract the features again")
    if (found := features.values.shape[2]) != (count := feature_count(model, features.about["pooling"])):
        raise InputError(f"{features.path} has {found} features a sample, and its network {count}; extract it again")
    return model


@dataclass(frozen=True)
class Row:
    """A head's results: one line of the table."""

    head: str
    stream: str
    held_out: np.ndarray  # (training videos, classes)
    test: np.ndarray  # (test videos, classes)
    truth: tuple[np.ndarray, np.ndarray]  # labels of both
    choice: dict[str, Any]

    def scores(self) -> tuple[float, float]:
        """Return top-1 (per cent) on held-out training videos and on test videos."""
        return accuracy(self.held_out, self.truth[0])["top1"], accuracy(self.test, self.truth[1])["top1"]


def average(rows: Sequence[Row]) -> Row:
    """Average two streams' logits as fusion.py does, and return the result as a row."""
    held_out, test = (np.mean([getattr(row, part) for row in rows], 0) for part in ("held_out", "test"))
    return Row(rows[0].head, "average", held_out, test, rows[0].truth, {})


def fit_and_write(
    args: argparse.Namespace, head: str, streams: dict[str, Inputs], networks: dict[str, Network], alike: Any
) -> Row:
    """Fit a head on the features of one stream, or of both joined, and write its predictions and checkpoint."""
    inputs = together(streams)
    one = next(iter(inputs.values()))
    name = next(iter(streams)) if len(streams) == 1 else "joined" if head == "linear" else "both"
    fit = fit_head(args, head, name, inputs, networks)
    folder = args.output / "joined" if name == "joined" else args.output / head / name
    parts = [(folder, name, inputs, fit.state)]
    if name == "joined":
        # Two heads that sum to it: predict.py takes joined/spatial and joined/motion like any two streams.
        widths = [sum(each.values.shape[2] for each in own.values()) for own in streams.values()]
        bias, weights = fit.state["fc.bias"] / 2, fit.state["fc.weight"].split(widths, 1)
        parts = [(folder / stream, stream, own, {"fc.weight": weight.contiguous(), "fc.bias": bias})
                 for (stream, own), weight in zip(streams.items(), weights, strict=True)]  # fmt: skip
    hashes = []
    for place, stream, own, state in parts:
        about = {"kind": head, "stream": stream, "choice": fit.choice}
        trunks = {each: networks[each].state_dict() for each in own}
        hashes.append(write_head(place / "checkpoint.pth.tar", about, state, own, trunks))
    write_said(folder, head if name == "both" else name, inputs, fit, "+".join(hashes), alike)
    train, test = one.rows("train"), one.rows("test")
    truth = one.labels[train], one.labels[test]
    return Row(head, name, fit.held_out, fit.logits[test].mean(1), truth, fit.choice)


def fit_head(args: argparse.Namespace, head: str, name: str, inputs: Inputs, networks: dict[str, Network]) -> Fit:
    one = next(iter(inputs.values()))
    values = [each.values for each in inputs.values()]
    rest = (one.rows("train"), one.labels, one.groups, len(one.about["class_names"]), args.folds, args.seed)
    if head != "linear":
        total = (args.folds + 1) * TEMPORAL[head].epochs  # limit: the final fit may stop earlier
        with progress_bar(total, f"{head} {name}", "epoch") as bar:
            return fit_temporal(head, values, *rest, args.device, bar.update)
    if name == "joined":  # streams may differ in their number of samples
        return fit_linear(np.concatenate([each.mean(1, dtype=np.float64) for each in values], 1)[:, None], *rest)
    stages = one.about["pooling"]
    if len(values) == 1 and len(stages) > 1:
        return fit_first_or_all(feature_count(networks[name], stages[:1]), values[0], *rest)
    return fit_linear(np.concatenate(values, 2), *rest)


def write_said(folder: Path, stream: str, inputs: Inputs, fit: Fit, sha256: str, alike: Any) -> None:
    """Write a head's predictions: for test videos to `folder`, for held-out training videos to its val/."""
    one = next(iter(inputs.values()))
    protocols = {name: {"samples": each.about["samples"], "views": each.about["views"], **each.about["preparation"]}
                 for name, each in inputs.items()}  # fmt: skip
    for subset, place in (("test", folder), ("val", folder / "val")):
        rows = one.rows("test" if subset == "test" else "train")
        videos = [one.videos[row] for row in rows]
        logits = fit.logits[rows] if subset == "test" else fit.held_out[:, None]
        about = {
            **{key: one.about[key] for key in ("dataset", "split", "class_names")},
            "subset": subset,
            "labels": dict(zip(videos, one.labels[rows].tolist(), strict=True)),
            "groups": dict(zip(videos, map(str, one.groups[rows]), strict=True)),
            "protocol": protocols if len(inputs) > 1 else next(iter(protocols.values())),
            "checkpoint": {"name": "checkpoint.pth.tar", "epoch": -1, "weights_sha256": sha256},
        }
        if "frames" in one.about:  # where the report finds pictures of the videos; else in the video files
            root, *more = (each.about["frames"]["root"] for each in inputs.values())
            folders = {video: one.about["frames"]["folders"].get(video, "") for video in videos}
            about["frames"] = {"root": root, "folders": folders, "more": more}
        else:
            files = one.about["files"]
            about["files"] = {video: files[video] for video in videos if video in files}
        if alike:
            about["look_alikes"] = alike
        write_predictions(place, stream, dict(zip(videos, logits, strict=True)), about)


def check_look_alikes(args: argparse.Namespace, streams: dict[str, Inputs]) -> dict[str, Any] | None:
    """Return the result of the look-alike check on RGB features, None without them or with too few videos."""
    if "spatial" not in streams:
        return None
    one = next(iter(streams["spatial"].values()))
    test, classes = one.subset == "test", len(one.about["class_names"])
    try:
        return look_alikes(one.values, one.labels, one.groups, one.videos, test, classes, args.folds, args.seed)
    except InputError:
        return None


def table(rows: Sequence[Row]) -> str:
    """Return the table as text: top-1 of each head and stream, and how the head was chosen."""
    counts = [len(labels) for labels in rows[0].truth]
    lines = [
        f"top-1, %: training videos ({counts[0]:,}) held out of their head, and test videos ({counts[1]:,})",
        f"{'head':10} {'stream':8} {'held out':>9} {'test':>7}   chosen",
    ]
    for row in rows:
        held_out, test = row.scores()
        chosen = [f"{key} {row.choice[key]:.3g}" for key in ("C", "epochs") if key in row.choice]
        chosen += [f"by {row.choice['chosen_by']}"] if row.choice else []
        lines.append(f"{row.head:10} {row.stream:8} {held_out:9.2f} {test:7.2f}   {' '.join(chosen)}".rstrip())
        if note := gap_note(held_out, counts[0], test, counts[1]):
            lines.append(f"  {note}")
    return "\n".join(lines)


def next_command(args: argparse.Namespace, rows: Sequence[Row]) -> str:
    """Return the command to fuse two streams, or else to name the action in a video."""
    folder = args.output.as_posix()
    if rows[0].head == "linear" and args.spatial and args.motion:
        flags = ["--spatial", f"{folder}/linear/spatial", "--motion", f"{folder}/linear/motion"]
        return f"fuse:     python fusion.py {shlex.join(flags)} --learn"
    best = max(rows, key=lambda row: row.scores()[0])
    flags = [f"--{best.stream.replace('both', 'head')}", f"{folder}/{best.head}/{best.stream}/checkpoint.pth.tar"]
    return f"predict:  python predict.py VIDEO {shlex.join(flags)}"


if __name__ == "__main__":
    run_main(main)
