"""One stream's run: what it writes and prints, how it stops and resumes. The scripts have the epoch loop."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
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
from dataloader.sampling import TestSampling
from engine.evaluation import TestResult, test
from engine.owner import owned
from engine.training import Training
from saved.checkpoints import read_checkpoint, weights_hash, write_checkpoint
from saved.predictions import write_predictions
from saved.records import provenance, record_path, write_record
from utils import InputError, check_output, plural, processes, rank

CHECKPOINT, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
CHOSEN_BY = {
    "val": "model_best is chosen by videos held out of training",
    "last": "tested once, after the last epoch: nothing is chosen by the test set",
    "test": "model_best is chosen by the test set, which flatters its accuracy; --val-groups 3 holds training videos "
            "out to choose by",
}  # fmt: skip


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
        once = args.eval_every >= args.epochs
        self.chosen_by = "val" if args.val_groups else "last" if once else "test"
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
        assert self.data.train is not None
        with owned(self.output), contextlib.ExitStack() as stack:
            self._make_room(training)
            self.say(f"{self._headline(training)}\n{CHOSEN_BY[self.chosen_by]}")
            if self.args.tensorboard and self.leads:
                self.board = stack.enter_context(_board(self.output / "tensorboard", training.epoch))
            stack.enter_context(self._signals())
            try:
                yield
            except _Stopped:
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

    def test(self, training: Training) -> TestResult:
        """Evaluate on the videos that select the model. The training is saved first, in case this fails."""
        # All processes use rank 0's batch-norm statistics, as DistributedDataParallel does in training.
        if processes() > 1:
            for buffer in training.model.buffers():
                dist.broadcast(buffer, 0)
        self.save(training, False)
        return test(training, self.data.select, lambda: self.stop_if_asked(training))

    def write_results(
        self, training: Training, row: dict[str, float], result: TestResult | None, is_best: bool
    ) -> None:
        """Write an epoch's records and predictions. They become valid when its checkpoint is saved."""
        line = f"epoch {training.epoch}: loss {row['Loss']:.4f}, top-1 {row['Prec@1']:.2f} %, lr {row['lr']:.3g}"
        self._record("train", row, training.epoch)
        if result is not None:
            subset = "val" if self.args.val_groups else "test"
            if is_best or subset == "test":  # predictions on validation videos remain model_best's
                # After the next epoch, only model_best still holds the best epoch's network.
                self._write(result, training, subset, training.epoch, BEST if is_best else CHECKPOINT)
            scores = {"Loss": result.loss, "Prec@1": result.accuracy["top1"], "Prec@5": result.accuracy["top5"]}
            times = {"Batch Time": result.batch_time, "Data Time": result.data_time}
            self._record("test", {**row, **times, **scores}, training.epoch)
            line += f" | {subset}: {result}{' (best)' if is_best else ''}"
        self.best_written = is_best and not self.args.val_groups
        self.say(line)

    def save(self, training: Training, is_best: bool) -> None:
        """Write the checkpoint, and also model_best if it is the best."""
        state = training.state_dict()  # all processes must call this
        self.saved_at = time.monotonic()
        if self.leads and self.data.train is not None:
            names = {source.video.name for source in self.data.train.dataset.sources}
            state["trained_on"] = sorted(names | training.trained_on)
            write_checkpoint(
                state, *(self.output / name for name in ([BEST] if is_best else []) + [CHECKPOINT]),
                arch=self.args.arch, **self.data.about(), preparation=training.preparation.as_dict(), args=self.flags,
            )  # fmt: skip

    def report_best(self, training: Training) -> None:
        """Evaluate the best epoch's network unless it is the last, so that its predictions stay on disk."""
        if self.best_written:
            return
        if processes() > 1:
            dist.barrier()  # wait until rank 0 has written it
        path = self.output / BEST
        best = read_checkpoint(path) if path.is_file() else None
        if best is None or best.best_prec1 != training.best_prec1:  # left in this folder by another training
            self.say(f"the best epoch was before those in {self.output}: the predictions are the last epoch's")
            return
        training.model.load_state_dict(best.state_dict)
        result = self._final_test(training, best.epoch, path.name)
        self.say(f"model_best, of epoch {best.epoch} | test: {result}")

    def evaluate(self, training: Training) -> int:
        """Evaluate on the test videos, write both prediction files and report; return the exit code."""
        assert self.args.resume is not None
        with owned(self.output), self._signals():
            if self.leads:
                check_output(self.output, 0)
            self.say(self._headline(training))
            try:
                result = self._final_test(training, training.epoch - 1, self.args.resume.name)
            except _Stopped:
                self.say("stopped; the old predictions are untouched")
                return self.exit_code
        epoch = f", of epoch {training.epoch - 1}" if training.epoch > 0 else ""
        self.say(f"test of {self.args.resume.name}{epoch}: {result}")
        return 0

    def _final_test(self, training: Training, epoch: int, name: str) -> TestResult:
        check_stop = functools.partial(self.stop_if_asked, training, save=False)
        result = test(training, self.data.test, check_stop)
        self._write(result, training, "test", epoch, name)
        if self.data.train is None and self.data.select is not self.data.test:
            self._write(test(training, self.data.select, check_stop), training, "val", epoch, name)
        return result

    def stop_if_asked(self, training: Training, save: bool = True) -> None:
        """Stop if any process received a signal. The training is saved first, unless `save` is False."""
        asked = self._agreed(training.device, self.signal)
        # Set it only then, or a signal that arrived in the meantime would be lost.
        if asked:
            self.signal = asked
            if save:
                self.save(training, False)
            raise _Stopped

    def _agreed(self, device: torch.device, asked: int) -> int:
        """Return the maximum of `asked` over all processes, so that all stop or save after the same batch."""
        if processes() == 1:
            return asked
        flag = torch.tensor(int(asked), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop after the current batch on the first Ctrl-C or SIGTERM, and at once on a second Ctrl-C.

        A second SIGTERM does nothing: a scheduler sends one to all processes, and torchrun forwards another.
        """

        def ask(number: int, _: Any) -> None:
            if self.signal:
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                return
            self.signal = number
            self.say("stopping after this batch ...")

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _headline(self, training: Training) -> str:
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

    def _make_room(self, training: Training) -> None:
        """Check the disk space, and rename another training's files in case --resume was forgotten."""
        if not self.leads:
            return
        # Weights and momentum, in two checkpoints and a temporary one.
        size = 3 * 2 * sum(tensor.nbytes for tensor in training.model.state_dict().values())
        own = [(self.output / name).resolve() for name in (CHECKPOINT, BEST)]
        goes_on = self.args.resume is not None and self.args.resume.resolve() in own
        check_output(self.output, size, replaced=own if goes_on else ())
        if goes_on or not own[0].is_file():
            return
        prefixes = (f"old{number}_" for number in itertools.count(1))
        free = next(prefix for prefix in prefixes if not (self.output / f"{prefix}{CHECKPOINT}").exists())
        for name in (BEST, f"{self.prefix}_train.csv", f"{self.prefix}_test.csv", CHECKPOINT):
            if (self.output / name).is_file():
                os.replace(self.output / name, self.output / f"{free}{name}")
        self.say(f"{self.output} held another training: its files are now {self.output}/{free}*")

    def _record(self, phase: str, row: dict[str, float], epoch: int) -> None:
        if self.leads:
            write_record(record_path(self.output, self.prefix, phase), row)
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(f"{phase}/{name}", value, epoch)
            self.board.flush()

    def _write(self, result: TestResult, training: Training, subset: str, epoch: int, name: str) -> None:
        """Write predictions: those of test videos to the output folder, of validation videos to its val/."""
        if not self.leads:
            return
        dataset = (self.data.test if subset == "test" else self.data.select).dataset
        assert isinstance(dataset.sampling, TestSampling)
        about = {
            **self.data.about(), "subset": subset, "labels": result.labels,
            "protocol": {**dataset.sampling.about(), **training.preparation.as_dict()},
            "checkpoint": {"name": name, "epoch": epoch, "weights_sha256": weights_hash(training.model.state_dict())},
            "chosen_by": None if self.data.train is None else self.chosen_by,
            "made": provenance(self.flags), "frames": self.data.frames(dataset.sources),
        }  # fmt: skip
        folder = self.output if subset == "test" else self.output / "val"
        write_predictions(folder, self.stream, result.frame_logits, about)


class _Stopped(Exception):
    """Raised between two batches after Ctrl-C or SIGTERM."""


def _board(folder: Path, epoch: int) -> Any:
    """Return TensorBoard's writer, for epochs from this one on; points of epochs trained again are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder), purge_step=epoch)
