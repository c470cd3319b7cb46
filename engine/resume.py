"""Go on from a checkpoint: find and read it, take its flags and its preparation, restore the training's state."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from dataloader.clips import Data
from dataloader.names import first_few
from dataloader.preparation import Preparation
from engine.training import Training
from network import explain_mismatch
from saved.checkpoint_reader import Checkpoint, read_checkpoint
from utils import InputError, plural, rank

# A resumed run takes missing flags from the checkpoint, except these, which do not shape the training.
NOT_RESTORED = {
    "resume", "evaluate", "output", "features", "pooling", "rgb_dir", "flow_dir", "ucf_list", "workers", "device",
    "compile", "save_every_minutes", "allow_missing", "weights", "flow_order", "tensorboard",
}  # fmt: skip


def open_checkpoint(args: argparse.Namespace, *modalities: str) -> Checkpoint | None:
    """Read --resume's checkpoint, ours or another project's, for one of `modalities`; None for a fresh start.

    `args.resume` becomes its path. The checkpoint's training flags replace those not given explicitly. If
    another recipe than the checkpoint's is given, all values of that recipe count as given. Raises InputError
    if there is no such file, or if --arch differs from the checkpoint's.
    """
    args.auto = args.resume == "auto"
    last = Path(args.output) / "checkpoint.pth.tar"
    if args.resume is not None:
        path = last if args.resume in ("last", "auto") else Path(args.resume)
        path = path / last.name if path.is_dir() else path
        if not path.is_file() and not args.auto:
            raise InputError(f"--resume {path}: no such file; check the path, or train from the start without --resume")
        args.resume = path if path.is_file() else None
    if args.evaluate and args.resume is None:
        raise InputError("--evaluate tests a trained network: name it with --resume PATH")
    if args.resume is None:
        return None
    checkpoint = read_checkpoint(args.resume, *modalities, flow_order=getattr(args, "flow_order", "original"))
    ours = checkpoint.source == "two-stream"
    if "arch" in args.given and args.arch != checkpoint.arch:
        raise InputError(f"--arch {args.arch}: {args.resume} is a {checkpoint.arch}; leave --arch out")
    saved = dict(checkpoint.args)
    if not ours and args.schedule != "plateau":
        saved.pop("lr", None)  # another project's, as its schedule left it: ours counts from the start
    if "recipe" in args.given and args.recipe != saved.get("recipe"):
        args.given |= set(args.of_recipe)
    restored = saved.keys() & vars(args).keys() - args.given - NOT_RESTORED
    vars(args).update({name: saved[name] for name in restored}, arch=checkpoint.arch)
    if hasattr(args, "input"):
        args.input = checkpoint.preparation["modality"]
    if not ours and rank() == 0:
        author = "the original repository" if checkpoint.source == "original" else checkpoint.source
        epoch = f", epoch {checkpoint.epoch}" if checkpoint.epoch >= 0 else ""
        momentum = "" if args.evaluate else "; the optimizer's momentum starts afresh"
        print(f"{args.resume}: a checkpoint of {author}{epoch}{momentum}")
    return checkpoint


def choose_preparation(args: argparse.Namespace, checkpoint: Checkpoint | None, fresh: Preparation) -> Preparation:
    """Return the checkpoint's preparation with explicit flags applied, or `fresh` without a checkpoint."""
    if checkpoint is None:
        return fresh
    given = {name: getattr(args, name) for name in ("size", "test_resize", "stack_length") if name in args.given}
    if getattr(args, "input", None) == "flow":
        given |= {name: (getattr(args, f"flow_{name}"),) for name in ("mean", "std") if f"flow_{name}" in args.given}
    old = Preparation.from_dict(checkpoint.preparation)
    new = replace(old, **given)
    if new.stack_length != old.stack_length:
        network = f"{checkpoint.path} is a network for {old.stack_length}"
        raise InputError(f"--stack-length {new.stack_length}: {network}; leave --stack-length out")
    return new


def unless_tested(args: argparse.Namespace, checkpoint: Checkpoint | None, data: Data) -> Checkpoint | None:
    """Return `checkpoint`, unless its training saw videos that are now tested, or choose the model.

    Then --resume auto starts anew: None. Other training raises InputError; --evaluate and --features warn.
    """
    tested = {source.video.name for loader in (data.test, data.select) for source in loader.dataset.sources}
    if checkpoint is None or not (both := sorted(tested & checkpoint.trained_on)):
        return checkpoint
    found = f"{checkpoint.path} was trained on {len(both):,} of {plural(len(tested), 'test video')} ({first_few(both)})"
    anew = data.train is not None and not args.features
    if anew and not args.auto:
        raise InputError(f"{found}: give the lists of its training, or train anew, without --resume")
    if rank() == 0:
        print(f"warning: {found}: {'training starts anew' if anew else 'no test of new videos'}", file=sys.stderr)
    if anew:
        args.resume = None
    return None if anew else checkpoint


def go_on(training: Training, checkpoint: Checkpoint, class_names: list[str], trains: bool = True) -> None:
    """Continue from `checkpoint`, ours or another project's; `settings` override its own.

    Unless it `trains`, only weights and epoch are restored. InputError if the network or classes do not fit.
    """
    checkpoint = checkpoint.in_order_of(class_names)
    problem = explain_mismatch(training.model, checkpoint.state_dict)
    if problem is None and checkpoint.class_names not in (None, class_names):
        its, ours = next((a, b) for a, b in zip(checkpoint.class_names, class_names, strict=True) if a != b)
        problem = f"its classes are others, or in another order ({its} where the lists have {ours})"
    if problem:
        raise InputError(f"{checkpoint.path} does not fit this data: {problem}")
    training.model.load_state_dict(checkpoint.state_dict, strict=False)  # num_batches_tracked may be absent
    training.epoch, training.best_prec1 = checkpoint.epoch + 1, checkpoint.best_prec1
    training.trained_on = checkpoint.trained_on
    if checkpoint.source != "two-stream" or not trains:
        return
    # Restore the rest of our own checkpoint: optimizer, plateau schedule and the epoch in progress.
    state, settings, path = checkpoint.raw, training.settings, checkpoint.path
    if "optimizer" not in state:
        raise InputError(f"{path} holds weights alone: start from them with --weights, or test: --evaluate")
    past = "--recipe small" if state["args"].get("recipe") == "small" else "--ema" if state.get("ema") else ""
    if past:  # of an earlier version
        raise InputError(f"{path} was trained with {past}, which is gone: start from it with --weights, or test it")
    if state["batch"] and settings.batch_size != state["args"]["batch_size"]:
        raise InputError(f"{path} stands within an epoch of --batch-size {state['args']['batch_size']}: finish it "
                         f"before you train with {settings.batch_size}")  # fmt: skip
    fresh = [dict(group) for group in training.optimizer.param_groups]
    try:
        training.optimizer.load_state_dict(state["optimizer"])
    except ValueError:
        raise InputError(f"{path}: its optimizer is for other weights; start from it with --weights") from None
    # This run's flags override the saved momentum, decay and rates. Only plateau's reductions of the rate
    # are kept, unless --lr changed; then the new rate applies from here on.
    same_lr = settings.lr == state["args"]["lr"]
    plateau = settings.schedule == state["args"]["schedule"] == "plateau"
    for group, new in zip(training.optimizer.param_groups, fresh, strict=True):
        taken_off = group["lr"] / group["initial_lr"] if plateau and same_lr else 1.0
        group.update({name: value for name, value in new.items() if name != "params"})
        group["lr"] = group["initial_lr"] * taken_off
    if plateau:
        training.plateau.load_state_dict(state["scheduler"])
        training.plateau.patience = settings.patience
    training.scaler.load_state_dict(state["scaler"])
    training.batch, training.times = state["batch"], list(state["times"])
    if rank() == 0:  # one process continues with the sums of all
        training.sums = state["sums"].to(training.sums)
