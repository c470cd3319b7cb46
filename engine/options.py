"""The flags of spatial_cnn.py and motion_cnn.py: one list, two recipes, and what a checkpoint brings back."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import pooling
from utils import ArgumentParser, InputError

# What a flag given on a resume does not have to repeat: everything that shapes the training, from the checkpoint.
NOT_RESTORED = {
    "resume", "evaluate", "start_epoch", "output", "features", "pooling", "rgb_dir", "flow_dir", "ucf_list", "workers",
    "device", "compile", "save_every_minutes", "allow_missing", "on_error", "weights", "flow_order",
}  # fmt: skip


# (lowest, highest) of numbers that would otherwise fail late, or quietly do nothing
RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "segments", "size", "stack_length"), (1, math.inf)),
    **dict.fromkeys(("test_samples", "eval_every"), (1, math.inf)),
    **dict.fromkeys(("val_groups", "workers", "patience", "warmup_epochs", "start_epoch"), (0, math.inf)),
    **dict.fromkeys(("weight_decay", "clip_grad", "save_every_minutes", "conv1_lr_factor", "lr"), (0, math.inf)),
    **dict.fromkeys(("dropout", "label_smoothing", "ema", "momentum", "milestones"), (0, 1)),
    "flow_std": (1e-6, math.inf),
    "seed": (0, 2**32 - 1),  # numpy's
}


def stream_parser(stream: str, description: str) -> ArgumentParser:
    """The flags that both streams have. A script adds its own and hands the parser to `parse`."""
    # all flags in a usage line would fill a screen
    parser = ArgumentParser(description, usage="%(prog)s [--resume [PATH]] [--evaluate] [--recipe tsn] [flags]")
    parser.add_argument("--recipe", choices=("baseline", "tsn"), default="baseline",
                        help="baseline: the original's; tsn: what the better peers share. Sets defaults; any flag wins")

    group = parser.add_argument_group("data")
    group.add_argument("--ucf-list", metavar="DIR", default="data/ucfTrainTestlist",
                       help="folder of split lists (UCF101's, HMDB51's or your own); 'none': by UCF101's group rule")
    group.add_argument("--split", default="1", metavar="N", help="number of the split")
    group.add_argument("--val-groups", type=int, default=0, metavar="N",
                       help="hold the last N groups of each class out of training and choose the model by them, "
                            "so that the test set only reports; 0: choose by the test set, as the original did")
    group.add_argument("--allow-missing", action="store_true", help="go on without listed videos that are not on disk")
    group.add_argument("--on-error", choices=("stop", "skip"), default="stop",
                       help="skip: train with another video in place of one that can't be read; list them at the end")
    group.add_argument("--workers", type=int, default=None, metavar="N",
                       help="loader processes (default: one per core, at most 16)")

    group = parser.add_argument_group("model")
    group.add_argument("--arch", default="resnet101", help="any ResNet, ResNeXt or Wide ResNet of torchvision")
    group.add_argument("--weights", default="imagenet", metavar="imagenet|none|NAME|PATH",
                       help="where training starts: torchvision's ImageNet weights, random, a torchvision set such as "
                            "IMAGENET1K_V2, or a local state_dict")
    group.add_argument("--dropout", type=float, default=0.0, help="on the pooled features (TSN 3.2: .8 RGB, .7 flow)")

    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=500, help="total number of epochs")
    group.add_argument("--batch-size", "-b", type=int, default=25, help="videos per step, over all processes")
    group.add_argument("--accumulate", type=int, default=1, metavar="K",
                       help="do a batch in K parts, so that it fits the memory; the step stays that of the whole batch")
    group.add_argument("--segments", type=int, default=3,
                       help="random clips per video, one in each equal part; their mean logits are trained (TSN 3.1)")
    group.add_argument("--lr", type=float, default=5e-4, help="learning rate")
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=float, default=0.0, help="not on biases and batch norm (TSN code: 5e-4)")
    group.add_argument("--schedule", choices=("plateau", "step", "cosine"), default="plateau",
                       help="plateau: lr / 10 when the video-level test loss stalls; step: lr / 10 at --milestones")
    group.add_argument("--patience", type=int, default=1, help="tests without progress before plateau acts")
    group.add_argument("--milestones", type=float, nargs="*", default=[], metavar="F",
                       help="of --schedule step, as fractions of --epochs")
    group.add_argument("--warmup-epochs", type=int, default=0, help="epochs of linear warm-up of lr (step and cosine)")
    group.add_argument("--clip-grad", type=float, default=0.0, metavar="NORM",
                       help="limit the gradient's norm; 0: off (TSN code: 40 RGB, 20 flow)")
    group.add_argument("--partial-bn", action=argparse.BooleanOptionalAction, default=False,
                       help="freeze every batch norm but the first (TSN 3.2)")
    group.add_argument("--label-smoothing", type=float, default=0.0,
                       help="share of a label given to all classes (Szegedy et al. 2016, section 7)")
    group.add_argument("--ema", type=float, default=0.0, metavar="DECAY",
                       help="test an exponential moving average of the weights; 0: off, .999 is usual")

    group = parser.add_argument_group("augmentation")
    group.add_argument("--size", type=int, default=224, help="side of the network's input, in pixels")
    group.add_argument("--crop", choices=("random", "multiscale"), default="random",
                       help="multiscale: corner crops of jittered scale (TSN 3.2), shared by all of a video's clips")
    group.add_argument("--crop-positions", type=int, choices=(5, 13), default=5, help="of --crop multiscale")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror half of the videos")

    group = parser.add_argument_group("testing")
    group.add_argument("--test-samples", type=int, default=19, help="clips per video, spread evenly")
    group.add_argument("--test-views", type=int, choices=(1, 2, 5, 10), default=1,
                       help="crops per clip: 1 the centre, 5 corners, too; 2 and 10 with flips (TSN 4.2). Averaged "
                            "before softmax")
    group.add_argument("--test-resize", choices=("squash", "center"), default="squash",
                       help="squash: the whole image, as the original; center: a square of 224/256 of the short side")
    group.add_argument("--eval-every", type=int, default=1, metavar="N",
                       help="test after every N-th epoch, and the last")
    group.add_argument("--features", metavar="OUT.npz",
                       help="write the pooled features of training and test videos, from --weights or --resume's "
                            "network, and stop; with --evaluate: of the test videos, beside the test")

    group.add_argument("--pooling", nargs="+", metavar="STAGE.POOL",
                       help="what --features takes of each clip: the mean or max over the image of layer1 to layer4; "
                            "layer4.mean is what the last layer sees (default: "
                            f"{', '.join(f'{name} {chr(32).join(pools)}' for name, pools in pooling.DEFAULT.items())})")

    group = parser.add_argument_group("run")
    group.add_argument("--resume", nargs="?", const="last", metavar="PATH",
                       help="go on from a checkpoint (ours or another project's); without PATH: this --output's last; "
                            "'auto': its last if there is one, else from the start")
    group.add_argument("--evaluate", "-e", action="store_true", help="only test, then stop")
    group.add_argument("--start-epoch", type=int, default=None, metavar="N",
                       help="number of the first epoch, from 0 (default: after the checkpoint's)")
    group.add_argument("--output", default=f"record/{stream}", metavar="DIR", help="checkpoints, predictions, records")
    group.add_argument("--seed", type=int, default=0, help="of everything random")
    group.add_argument("--deterministic", action="store_true", help="reproducible CUDA kernels, slower (the CPU's are)")
    group.add_argument("--save-every-minutes", type=float, default=0.0, metavar="M",
                       help="also save within an epoch; resuming there is exact, too")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
                       help="mixed precision; auto: bf16 where the CPU or GPU has it in hardware")
    group.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then faster")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all processes (torchrun)")
    return parser


def parse(
    parser: ArgumentParser, recipes: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Read the command line. The recipe sets defaults, flags win; `args.given` names the flags that were given."""
    argv = sys.argv[1:] if argv is None else list(argv)
    first = ArgumentParser(add_help=False)
    first.add_argument("--recipe", choices=tuple(recipes), default="baseline")
    recipe = first.parse_known_args(argv)[0].recipe
    parser.set_defaults(**recipes[recipe])
    args = parser.parse_args(argv)
    # A second reading, with a default that nobody can give, tells what was given from what was not.
    absent = object()
    parser.set_defaults(**dict.fromkeys(vars(args), absent))
    args.given = {name for name, value in vars(parser.parse_args(argv)).items() if value is not absent}
    check_ranges(args)
    if args.evaluate and not args.resume:
        raise InputError("--evaluate tests a trained network: name it with --resume PATH")
    args.resume = _find_checkpoint(args.resume, args.output)
    return args


def check_ranges(args: argparse.Namespace) -> None:
    """Raise InputError for a number outside RANGES; one that is not given may be None."""
    for name, (low, high) in RANGES.items():
        values = getattr(args, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not low <= value <= high:  # NaN is in no range
                span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise InputError(f"--{name.replace('_', '-')} {value}: must be {span}")


def restore(args: argparse.Namespace, saved: Mapping[str, Any]) -> None:
    """Put a checkpoint's flags in place of those that were not given, so that a resume repeats nothing."""
    for name, value in saved.items():
        if name not in args.given | NOT_RESTORED and hasattr(args, name):
            setattr(args, name, value)


def as_dict(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as plain values, for a checkpoint."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items() if name != "given"}


def _find_checkpoint(resume: str | None, output: str) -> Path | None:
    if resume is None:
        return None
    last = Path(output) / "checkpoint.pth.tar"
    if resume == "auto":
        return last if last.is_file() else None
    path = last if resume == "last" else Path(resume)
    path = path / last.name if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--resume {path}: no such file; check the path, or train from the start without --resume")
    return path
