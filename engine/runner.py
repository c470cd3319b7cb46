"""One stream's run: its folder, its checkpoints, how it stops. The scripts have the epoch loop."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from dataloader.clips import Data
from engine.owner import make_room, owned
from engine.training import Training
from saved.checkpoints import write_checkpoint
from utils import InputError, plural, processes, rank

CHECKPOINT, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
CHOSEN_BY = {
    "val": "model_best is chosen by videos held out of training",
    "last": "tested once, after the last epoch: nothing is chosen by the test set",
    "test": "model_best is chosen by the test set, which flatters its accuracy; --val-groups 3 holds training videos "
            "out to choose by",
}  # fmt: skip


class Stopped(Exception):
    """Raised between two batches after Ctrl-C or SIGTERM."""


class Run:
    """Training or evaluation of one stream: where it writes, and how it stops.

    Each epoch ends by writing, in this order: records, predictions, model_best, checkpoint. The checkpoint is
    the commit: a run killed before it repeats the epoch, to the same bits, and overwrites what it wrote.
    """

    def __init__(self, stream: str, prefix: str, args: argparse.Namespace, data: Data) -> None:
        """`stream` and `prefix` name prediction and record files; `args` are the flags, after resuming."""
        self.stream, self.prefix, self.args, self.data = stream, prefix, args, data
        self.output = Path(args.output)
        self.leads = rank() == 0  # only rank 0 writes and prints
        # Plain values, as checkpoints store them.
        self.flags = {name: str(value) if isinstance(value, Path) else value
                      for name, value in vars(args).items() if name not in ("given", "of_recipe", "auto")}  # fmt: skip
        # What selects the evaluated epoch: "last" if nothing does.
        self.chosen_by = "last" if args.eval_every >= args.epochs else "val" if args.val_groups else "test"
        self.board: Any = None  # TensorBoard's writer
        self.signal = 0  # number of the signal that asked to stop; 0: none
        self.best_written = False  # whether the predictions on disk are model_best's for the test videos
        self.saved_at = time.monotonic()

    def say(self, text: str) -> None:
        if self.leads:
            tqdm.write(text)
            sys.stdout.flush()

    @contextlib.contextmanager
    def training(self, training: Training) -> Iterator[None]:
        """Context for the epoch loop: lock the output folder, and keep files of an earlier training in it.

        Ctrl-C or SIGTERM saves the training and ends the block after the batch; `exit_code` then says so.
        """
        with owned(self.output), contextlib.ExitStack() as stack:
            if self.leads:
                # Weights and momentum, in two checkpoints and a temporary one.
                size = 3 * 2 * sum(tensor.nbytes for tensor in training.model.state_dict().values())
                records = [f"{self.prefix}_{phase}.csv" for phase in ("train", "test")]
                make_room(self.output, size, self.args.resume, [*records, BEST, CHECKPOINT])
            self.say(f"{self.headline(training)}\n{CHOSEN_BY[self.chosen_by]}")
            if self.args.tensorboard and self.leads:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError:
                    raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
                # purge_step hides the points of epochs that are trained again.
                writer = SummaryWriter(str(self.output / "tensorboard"), purge_step=training.epoch)
                self.board = stack.enter_context(writer)
            stack.enter_context(self.signals())
            try:
                yield
            except Stopped:
                # Not --resume PATH: without the same --output, data and lists, it would go on elsewhere.
                self.say(f"stopped by {signal.Signals(self.signal).name}; nothing is lost, all is in "
                         f"{self.output / CHECKPOINT}. Go on with the same command and --resume")  # fmt: skip

    @property
    def exit_code(self) -> int:
        return 128 + self.signal if self.signal else 0

    def after_batch(self, training: Training) -> None:
        """Stop on a signal, and save if --save-every-minutes has elapsed. All processes decide together."""
        self.stop_if_asked(training)
        minutes = self.args.save_every_minutes
        if minutes and self._agreed(training.device, time.monotonic() - self.saved_at > 60 * minutes):
            self.save(training, False)

    def tests_after(self, training: Training) -> bool:
        """Return whether an evaluation follows the epoch in progress."""
        return (training.epoch + 1) % self.args.eval_every == 0 or training.epoch + 1 == self.args.epochs

    def save(self, training: Training, is_best: bool) -> None:
        """Write the checkpoint, and also model_best if it is the best."""
        state = training.state_dict()  # all processes must call this
        self.saved_at = time.monotonic()
        if self.leads and self.data.train is not None:
            names = {source.video.name for source in self.data.train.dataset.sources}
            state["trained_on"] = sorted(names | training.trained_on)
            paths = [self.output / name for name in ((BEST, CHECKPOINT) if is_best else (CHECKPOINT,))]
            write_checkpoint(state, *paths, arch=self.args.arch, **self.data.about(),
                             preparation=training.preparation.as_dict(), args=self.flags)  # fmt: skip

    def stop_if_asked(self, training: Training, save: bool = True) -> None:
        """Stop if any process received a signal. The training is saved first, unless `save` is False."""
        if asked := self._agreed(training.device, self.signal):
            self.signal = asked  # not before, or a signal that arrived in the meantime would be lost
            if save:
                self.save(training, False)
            raise Stopped

    def _agreed(self, device: torch.device, asked: int) -> int:
        """Return the maximum of `asked` over all processes, so that all stop or save after the same batch."""
        if processes() == 1:
            return asked
        flag = torch.tensor(int(asked), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stop after the current batch on the first Ctrl-C or SIGTERM, and at once on a second Ctrl-C.

        A second SIGTERM does nothing: a scheduler sends one to all processes, and torchrun forwards another.
        """

        def ask(number: int, _: Any) -> None:
            if not self.signal:
                self.signal = number
                self.say("stopping after this batch ...")
            elif number == signal.SIGINT:
                raise KeyboardInterrupt

        with contextlib.ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, ask))  # at the end, the old handler
            yield

    def headline(self, training: Training) -> str:
        data, split = self.data, self.data.split
        shared = f" x {processes()} processes" if processes() > 1 else ""
        train = plan = ""
        if data.train:
            train = f"{len(data.train.dataset):,} training and "
            within = f" after {plural(training.batch, 'step')}" if training.batch else ""
            done = f", from epoch {training.epoch}{within} on," if training.epoch or training.batch else ""
            plan = f"{plural(training.settings.epochs, 'epoch')}{done} of {plural(len(data.train), 'step')}; "
        return (
            f"{self.stream} stream: {split.dataset} split {split.number}, {len(split.class_names)} classes, "
            f"{train}{plural(len(data.test.dataset), 'test video')}; {self.args.arch} on {training.device.type}"
            f"{shared}, {str(training.dtype).removeprefix('torch.')}\n{plan}writes to {self.output}"
        )
