"""One stream's run: the loop over epochs, what it writes, and how it stops and goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from dataloader.clips import Loader
from dataloader.loaders import Data
from dataloader.names import first_few
from dataloader.transforms import Preparation
from engine import options
from engine.epoch import TestResult, test, train_one_epoch
from engine.state import Training, amp_dtype
from saved.checkpoints import read_checkpoint
from utils import (
    InputError,
    atomic_path,
    check_output,
    check_writable,
    plural,
    save_checkpoint,
    weights_hash,
    world,
    write_predictions,
    write_record,
)


class Run:
    """One stream's training or test: where it writes, and how it stops.

    Each epoch ends by writing, in this order: records, predictions, model_best, checkpoint. The checkpoint
    is the commit: a run killed before it does the epoch again, to the same bits, and replaces what it wrote.
    """

    def __init__(
        self, stream: str, prefix: str, args: Any, data: Data, preparation: Preparation, device: torch.device
    ) -> None:
        self.stream, self.prefix, self.args, self.data = stream, prefix, args, data
        self.preparation, self.device = preparation, device
        self.output = Path(args.output)
        self.leads = world()[0] == 0  # only rank 0 writes and speaks
        self.problems: dict[str, str] = {}  # videos that --on-error skip replaced
        self.signal = 0  # of the one that asked to stop
        self.saved_at = time.monotonic()

    def say(self, text: str) -> None:
        if self.leads:
            tqdm.write(text)
            sys.stdout.flush()

    def fit(self, training: Training) -> int:
        """Train to --epochs, testing as asked, and leave the best epoch's predictions. Returns the exit code."""
        args = self.args
        model = training.for_training(args, self.device)
        size = sum(tensor.nbytes for tensor in training.model.state_dict().values())
        if self.leads:  # weights, momentum and average, in two checkpoints and a temporary one
            check_output(self.output, 3 * (3 if training.ema else 2) * size)
            self._check_features()
            own = [(self.output / name).resolve() for name in ("checkpoint.pth.tar", "model_best.pth.tar")]
            if args.resume is None or Path(args.resume).resolve() not in own:
                self._set_aside()
        self.say(self._headline())
        if untrained := self._untrained():
            names = self.data.split.class_names
            self.say(f"note: no training video in {len(untrained)} of {len(names)} classes: {first_few(untrained)}")
        if args.val_groups:
            self.say(f"model_best is chosen by {plural(len(self.data.select.dataset), 'video')} held out of training")
        else:
            self.say("model_best is chosen by the test set, as the original's was; --val-groups 3 chooses without it")
        if training.epoch >= args.epochs:
            self.say(f"nothing is left of --epochs {args.epochs}; a higher number trains further")
        with self._signals():
            try:
                last_is_best = False
                while training.epoch < args.epochs:
                    last_is_best = self._epoch(training, model)
                if not last_is_best or args.val_groups:
                    self._report_best(training)
            except _Stopped:
                # not its path: without --output, data and lists given again, that would go on elsewhere
                self.say(
                    f"stopped by {signal.Signals(self.signal).name}; nothing is lost, all is in "
                    f"{self.output / 'checkpoint.pth.tar'}. Go on with the same command and --resume"
                )
                return 128 + self.signal
        if self.problems:
            self.say(f"replaced {plural(len(self.problems), 'video')} that could not be read:")
            for name, reason in sorted(self.problems.items()):
                self.say(f"  {name}: {reason}")
        return 0

    def evaluate(self, training: Training) -> int:
        """Test on the test videos, write both prediction files, and say the result. Returns the exit code."""
        if self.leads:
            check_output(self.output, 0)
            self._check_features()
        self.say(self._headline())
        name = Path(self.args.resume).name
        with self._signals():
            try:
                result = self._test(training.tested_model, self.data.test)
            except _Stopped:
                self.say("stopped; the old predictions are untouched")
                return 128 + self.signal
        self._write(result, training.tested_model, self.data.test, "test", training.epoch - 1, name)
        self.say(f"test of {name}: {_summary(result)}")
        return 0

    def _headline(self) -> str:
        data, split = self.data, self.data.split
        train = f"{len(data.train.dataset):,} training and " if data.train else ""
        test = plural(len(data.test.dataset), "test video")
        dtype = str(amp_dtype(self.args.amp, self.device)).removeprefix("torch.")
        processes = f" x {world()[1]} processes" if world()[1] > 1 else ""
        return (
            f"{self.stream} stream: {split.dataset} split {split.number}, {len(split.class_names)} classes, "
            f"{train}{test}; {self.args.arch} on {self.device.type}{processes}, {dtype}"
        )

    def _untrained(self) -> list[str]:
        """The classes without a training video, which no epoch can teach."""
        assert self.data.train is not None
        trained = {source.video.label for source in self.data.train.dataset.sources}
        return [name for label, name in enumerate(self.data.split.class_names) if label not in trained]

    def _epoch(self, training: Training, model: nn.Module) -> bool:
        args, data = self.args, self.data
        assert data.train is not None
        row = train_one_epoch(
            training, model, data.train, self.preparation, args, self.device,
            lambda: self._after_batch(training), self.problems,
        )  # fmt: skip
        if self.leads:
            write_record(self.output / f"{self.prefix}_train.csv", row)
        line = f"epoch {training.epoch}: loss {row['Loss']:.4f}, top-1 {row['Prec@1']:.2f} %, lr {row['lr']:.3g}"
        is_best = False
        if (training.epoch + 1) % args.eval_every == 0 or training.epoch + 1 == args.epochs:
            _sync_buffers(training.tested_model)
            result = self._test(training.tested_model, data.select, training)
            is_best = result.accuracy["top1"] > training.best_prec1
            training.best_prec1 = max(training.best_prec1, result.accuracy["top1"])
            subset = "val" if args.val_groups else "test"
            self._write(result, training.tested_model, data.select, subset, training.epoch, "checkpoint.pth.tar")
            if self.leads:
                times = {"Batch Time": result.batch_time, "Data Time": result.data_time}
                scores = {"Loss": result.loss, "Prec@1": result.accuracy["top1"], "Prec@5": result.accuracy["top5"]}
                write_record(self.output / f"{self.prefix}_test.csv", {**row, **times, **scores})
            line += f" | {subset}: {_summary(result)}{' (best)' if is_best else ''}"
            if args.schedule == "plateau":
                training.scheduler.step(result.loss)
        if args.schedule != "plateau":
            training.scheduler.step()
        training.next_epoch()
        self._save(training, is_best)
        self.say(line)
        return is_best

    def _check_features(self) -> None:
        """--features is written after the test, which can take an hour: better to know before."""
        if self.args.features:
            if Path(self.args.features).is_dir():
                raise InputError(f"--features {self.args.features} is a folder; name a file in it, such as out.npz")
            check_writable(Path(self.args.features).parent)

    def _set_aside(self) -> None:
        """Keep what another training left here: forgetting --resume or --output must not cost the days it took."""
        records = [f"{self.prefix}_train.csv", f"{self.prefix}_test.csv"]
        if not (self.output / "checkpoint.pth.tar").is_file():
            return
        prefixes = itertools.chain(["old_"], (f"old{number}_" for number in itertools.count(2)))
        free = next(prefix for prefix in prefixes if not (self.output / f"{prefix}checkpoint.pth.tar").exists())
        for name in ("model_best.pth.tar", *records, "checkpoint.pth.tar"):
            if (self.output / name).is_file():
                os.replace(self.output / name, self.output / f"{free}{name}")
        start = "a training from the start" if self.args.resume is None else f"going on from {self.args.resume}"
        self.say(f"{start}; {self.output} held another: its files are now {self.output}/{free}*")

    def _report_best(self, training: Training) -> None:
        """Test the best epoch's network, so that its predictions are what stays on disk."""
        path = self.output / "model_best.pth.tar"
        _barrier()
        best = read_checkpoint(path) if path.is_file() else None
        if best is None or best.best_prec1 != training.best_prec1:  # another training's, which lay in this folder
            self.say(f"the best epoch was before those in {self.output}: the predictions are the last epoch's")
            return
        training.tested_model.load_state_dict(best.tested_state)
        result = self._test(training.tested_model, self.data.test)
        self._write(result, training.tested_model, self.data.test, "test", best.epoch, path.name)
        self.say(f"model_best, of epoch {best.epoch} | test: {_summary(result)}")

    def _test(self, model: nn.Module, loader: Loader, unsaved: Training | None = None) -> TestResult:
        """Test; Ctrl-C in between saves the training that was not saved yet, trained but not tested."""
        return test(model, loader, self.preparation, self.args, self.device, lambda: self._stop_if_asked(unsaved))

    def _after_batch(self, training: Training) -> None:
        self._stop_if_asked(training)
        minutes = self.args.save_every_minutes
        if minutes and self._agreed(time.monotonic() - self.saved_at > 60 * minutes):
            self._save(training, False)

    def _stop_if_asked(self, training: Training | None) -> None:
        asked = self._agreed(self.signal)
        if asked:  # only then is it written to, or a signal that came meanwhile would be forgotten
            self.signal = asked
            if training is not None:
                self._save(training, False)
            raise _Stopped

    def _agreed(self, asked: int) -> int:
        """What any process asks for, so that all stop or save after the same batch."""
        if world()[1] == 1:
            return asked
        flag = torch.tensor(int(asked), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)

    def _save(self, training: Training, is_best: bool) -> None:
        state = training.state_dict()  # which all processes make together
        self.saved_at = time.monotonic()
        if not self.leads:
            return
        header = {
            "format": "two-stream", "arch": self.args.arch, "class_names": list(self.data.split.class_names),
            "dataset": self.data.split.dataset, "split": self.data.split.number,
            "preparation": self.preparation.as_dict(), "args": options.as_dict(self.args),
        }  # fmt: skip
        names = ["model_best.pth.tar", "checkpoint.pth.tar"] if is_best else ["checkpoint.pth.tar"]
        save_checkpoint({**header, **state}, *(self.output / name for name in names))

    def _write(self, result: TestResult, model: nn.Module, loader: Loader, subset: str, epoch: int, name: str) -> None:
        if not self.leads:
            return
        split, args = self.data.split, self.args
        root = self.data.root.resolve()
        about = {
            "dataset": split.dataset, "split": split.number, "subset": subset, "class_names": list(split.class_names),
            "labels": result.labels,
            "protocol": {"samples": args.test_samples, "views": args.test_views, "starts": args.test_starts,
                         **self.preparation.as_dict()},
            "checkpoint": {"name": name, "epoch": epoch, "weights_sha256": weights_hash(model.state_dict())},
            "frames": {"root": str(root), "folders": {
                s.video.name: os.path.relpath(s.folder, self.data.root) for s in loader.dataset.sources}},
        }  # fmt: skip
        write_predictions(self.output, self.stream, result.frame_logits, about)
        if self.args.features:
            names = list(result.features)
            with atomic_path(self.args.features) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file, videos=np.array(names), labels=np.array([result.labels[n] for n in names]),
                    features=np.stack([result.features[n] for n in names]),
                )  # fmt: skip

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks to stop after the batch; a second one stops at once."""

        def ask(number: int, _: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number
            self.say("stopping after this batch ...")

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Stopped(Exception):
    """Ctrl-C or SIGTERM, noticed between two batches."""


def _summary(result: TestResult) -> str:
    scores = result.accuracy
    return (
        f"loss {result.loss:.4f}, top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
        f"mean class {scores['mean_class']:.2f} %"
    )


def _barrier() -> None:
    if world()[1] > 1:
        dist.barrier()


def _sync_buffers(model: nn.Module) -> None:
    """Give all processes rank 0's batch-norm statistics, as DistributedDataParallel does before each forward."""
    if world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
