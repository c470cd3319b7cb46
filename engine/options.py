"""Command-line flags of spatial_cnn.py and motion_cnn.py: parser and recipes."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.commandline import ArgumentParser, Switch, bounded
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling, TrainSampling
from engine import features
from engine.training import TrainingSettings
from utils import InputError

TSN = {  # what both streams share of this recipe: TSN's released code (Caffe)
    "batch_size": 128, "schedule": "step", "weight_decay": 5e-4, "fc_std": 1e-3, "partial_bn": True,
    "crop": "multiscale", "crop_positions": 13,
    "test_samples": 25, "test_views": 10, "test_resize": "center", "test_starts": "tsn",
}  # fmt: skip


def stream_parser(stream: str, description: str) -> ArgumentParser:
    """Make the parser with the flags that both streams share. A script adds its own and passes it to `parse`.

    Settings that only a recipe sets (momentum, patience, fc_std, crop_positions) have no flag.
    """
    # A usage line with all flags would fill a screen.
    parser = ArgumentParser(description, usage="%(prog)s [--resume [PATH]] [--evaluate] [--recipe tsn] [flags]")
    parser.set_defaults(**_settings())
    parser.add_argument("--recipe", choices=("baseline", "tsn"), default="baseline",
                        help="baseline: the original's; tsn: what the better peers share. Sets defaults; any flag wins")

    add = parser.add_argument_group("data").add_argument
    add("--ucf-list", metavar="DIR", default="data/ucfTrainTestlist",
        help="folder of split lists (UCF101's, HMDB51's or your own); 'none': by UCF101's group rule")
    add("--split", default="1", metavar="N", help="number of the split")
    add("--val-groups", type=bounded(int, 0), default=0, metavar="N",
        help="hold the last N groups of each class out of training and choose the model by them, so that the test set "
             "only reports; of videos whose names tell no groups, N/18 of each class; 0: choose by the test set, as "
             "the original did")
    add("--allow-missing", action="store_true", help="go on without listed videos that are not on disk")
    add("--workers", type=bounded(int, 0), default=None, metavar="N",
        help="loader processes (default: one per core, at most 16)")

    add = parser.add_argument_group("model").add_argument
    add("--arch", default="resnet101",
        help="any ResNet, ResNeXt or Wide ResNet of torchvision, or timm:NAME, any network of timm's")
    add("--weights", default="imagenet", metavar="imagenet|none|NAME|PATH",
        help="where training starts: ImageNet weights of torchvision or timm, random, a torchvision set such as "
             "IMAGENET1K_V2, or any project's checkpoint; for timm:NAME, also a file of timm's")
    add("--dropout", type=bounded(float, 0, 1), default=0.0, help="on the pooled features (TSN 3.2: .8 RGB, .7 flow)")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=bounded(int, 1), help="total number of epochs")
    add("--batch-size", "-b", type=bounded(int, 1), help="videos per step, over all processes")
    add("--accumulate", type=bounded(int, 1), metavar="K",
        help="compute each batch in K parts, so that it fits into memory. It is still one step, but batch norm "
             "takes its statistics from each part")
    add("--segments", type=bounded(int, 1),
        help="random clips per video, one in each equal part, trained together (TSN 3.1)")
    add("--consensus", choices=("mean", "sum"),
        help="of a video's clips before the loss: TSN's mean, or the original's sum")
    add("--lr", type=bounded(float, 0), help="learning rate")
    add("--weight-decay", type=bounded(float, 0), help="not on biases and batch norm (TSN code: 5e-4)")
    add("--schedule", choices=("plateau", "step", "cosine"),
        help="plateau: lr / 10 when the video-level test loss stalls; step: lr / 10 at --milestones")
    add("--clip-grad", type=bounded(float, 0), metavar="NORM",
        help="limit the gradient's norm; 0: off (TSN code: 40 RGB, 20 flow)")

    add = parser.add_argument_group("augmentation").add_argument
    add("--size", type=bounded(int, 1, 4096), help="side of the network's input, in pixels")
    add("--crop", choices=("random", "multiscale", "squash"),
        help="random: --size pixels of the image on disk; multiscale: corner crops of jittered scale (TSN 3.2); "
             "squash: all of the image, its aspect changed. Shared by all of a video's clips")
    add("--flip", action=Switch, help="mirror half of the videos")

    add = parser.add_argument_group("testing").add_argument
    add("--test-samples", type=bounded(int, 1), help="clips per video, spread evenly")
    add("--test-views", type=int, choices=(1, 2, 5, 10),
        help="crops per clip. 1: the centre; 5: the corners, too; 2 and 10: these and their mirror images (TSN 4.2). "
             "Averaged before softmax")
    add("--test-resize", choices=("squash", "center", "crop"),
        help="squash: the whole image, as in the original; center: a square of 224/256 of the short side; crop: a "
             "square of --size pixels, like a random crop")
    add("--eval-every", type=bounded(int, 1), default=1, metavar="N", help="test after every N-th epoch, and the last")
    add("--features", metavar="OUT.npz",
        help="write the pooled features of training and test videos, from --weights or --resume's network, and stop")
    add("--pooling", nargs="+", metavar="STAGE.POOL",
        help="what --features takes of each clip: the mean or max over the image of layer1 to layer4; "
             "layer4.mean is the last layer's input (pre-logits for timm's networks; default: "
             f"{' '.join(features.DEFAULT_POOLING[stream])})")

    add = parser.add_argument_group("run").add_argument
    add("--resume", nargs="?", const="last", metavar="PATH",
        help="go on from a checkpoint (ours or another project's); without PATH: this --output's last; 'auto': its "
             "last if there is one, else from the start")
    add("--evaluate", "-e", action="store_true", help="only test, then stop")
    add("--output", default=f"record/{stream}", metavar="DIR", help="checkpoints, predictions, records")
    add("--tensorboard", action="store_true",
        help="also write what the records hold, live, to tensorboard/ in --output")
    add("--seed", type=bounded(int, 0, 2**32 - 1), help="of everything random")
    add("--deterministic", action="store_true", help="reproducible CUDA kernels, slower (the CPU's are)")
    add("--save-every-minutes", type=bounded(float, 0), default=0.0, metavar="M",
        help="also save within an epoch; resuming there is exact, too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--amp", choices=("auto", "off", "bf16", "fp16"),
        help="mixed precision; auto: bf16 where the CPU or GPU has it in hardware")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster")

    add = parser.add_argument_group("recipe details").add_argument
    add("--milestones", type=bounded(float, 0, 1), nargs="*", metavar="F",
        help="of --schedule step, as fractions of --epochs")
    add("--partial-bn", action=Switch, help="freeze every batch norm but the first (TSN 3.2)")
    add("--test-starts", choices=("spread", "original", "tsn"),
        help="where clips begin. spread: from a video's start to its end; original: as there, without the end; tsn: "
             "as in TSN. Other projects' checkpoints set it (docs/differences.md)")
    return parser


def _settings() -> dict[str, Any]:
    """Return the defaults defined in dataclasses, flags or not. Each recipe sets lr and batch size."""
    fields = (*dataclasses.fields(TrainingSettings), *dataclasses.fields(TrainSampling))
    found = {one.name: one.default for one in fields if one.name not in ("lr", "batch_size", "scales")}
    found |= {f"test_{name}": getattr(TestSampling, name) for name in ("samples", "views", "starts")}
    return {**found, "fc_std": 0.0, "size": Preparation.size, "test_resize": Preparation.test_resize}


def parse(
    parser: ArgumentParser, recipes: Mapping[str, Mapping[str, Any]], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the command line. Explicit flags override the recipe; `args.given` is the set of their names.

    If there is a recipe "NAME INPUT" for the given --input, it replaces recipe NAME. Raises InputError for
    flags that contradict each other.
    """
    given, defaults = parser.parse_given(argv, recipes["baseline"])
    name = given.get("recipe", "baseline")
    recipe = recipes.get(f"{name} {given.get('input')}", recipes[name])
    args = argparse.Namespace(**{**_settings(), **defaults, **recipe, **given})
    args.given, args.of_recipe = set(given), dict(recipe)
    if args.evaluate and args.features:
        raise InputError("--features writes the features of all videos and stops: leave --evaluate out")
    return args


def data_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that say which videos are loaded, and how, as make_data takes them."""
    rule = args.ucf_list == "none" or ("ucf_list" not in args.given and not Path(args.ucf_list).is_dir())
    training = TrainSampling(args.segments, args.crop, args.crop_positions, flip=args.flip)
    names = ("split", "batch_size", "val_groups", "allow_missing", "workers", "seed")
    return {
        "ucf_list": None if rule else Path(args.ucf_list), "training": None if args.evaluate else training,
        "testing": TestSampling(args.test_samples, args.test_views, args.test_starts),
        **{name: getattr(args, name) for name in names},
    }  # fmt: skip


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """Collect the flags that say how a network is trained, with their types."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    values = {name: value for name, value in vars(args).items() if name in names}
    return TrainingSettings(**values | {"milestones": tuple(args.milestones)})
