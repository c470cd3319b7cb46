"""`--tensorboard`: what the records hold, live within an epoch too, for TensorBoard.

Under `<output>/tensorboard` stand two runs: `batches`, whose steps are batches, and `epochs`, whose steps are epochs.
The CSVs stay the record: what can't be written here is said once, and costs the training nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.state import Training
from utils import InputError, processes

SECONDS = 5.0  # between two looks at the running sums, each of which waits for the device


class Board:
    """A training's TensorBoard files. With several processes, rank 0's: its share of an epoch in progress."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the package tensorboard is missing. Nothing is written before it is `opened`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.folder, self._make = folder, SummaryWriter
        self.batches: Any = None
        self.epochs: Any = None
        self.length = 0  # batches in an epoch
        self._seen = (-1, 0.0, 0.0, 0.0)  # epoch, videos, seconds and seconds of waiting at the last look
        self._looked = 0.0

    @contextlib.contextmanager
    def opened(self, training: Training, length: int) -> Iterator[None]:
        """Around a training of `length` batches an epoch; points that are to be done again are hidden."""
        self.length = length
        with self._safely():
            done = training.epoch * length + training.batch
            self.batches = self._make(str(self.folder / "batches"), purge_step=done + 1)
            self.epochs = self._make(str(self.folder / "epochs"), purge_step=training.epoch)
        try:
            yield
        finally:
            with self._safely():
                for writer in (self.batches, self.epochs):
                    if writer is not None:
                        writer.close()

    def batch(self, training: Training) -> None:
        """After a batch: the epoch's loss and top-1 so far, the rate, videos per second, the share of waiting."""
        if self.batches is None or (time.monotonic() - self._looked < SECONDS and training.batch < self.length):
            return
        self._looked = time.monotonic()
        loss, top1, _, videos = training.sums.tolist()
        epoch, *before = self._seen
        old = before if epoch == training.epoch else [0.0] * 3
        now = (videos, *training.times)
        new, seconds, waiting = (a - b for a, b in zip(now, old, strict=True))
        self._seen = (training.epoch, *now)
        values = {"train/loss so far": loss / videos, "train/top-1 so far, %": 100 * top1 / videos,
                  "train/lr": training.optimizer.param_groups[-1]["lr"]}  # fmt: skip
        if seconds > 0:
            values["speed/videos per second"] = new * processes() / seconds
            values["speed/waiting for data, %"] = 100 * waiting / seconds
        self._scalars(self.batches, values, training.epoch * self.length + training.batch)

    def epoch(self, row: Mapping[str, float]) -> None:
        """A row of the training's record."""
        self._rows("train", row)

    def test(self, row: Mapping[str, float]) -> None:
        """A row of the tests' record."""
        self._rows("test", row)

    def _rows(self, what: str, row: Mapping[str, float]) -> None:
        values = {f"{what}/{name}": value for name, value in row.items() if name != "Epoch"}
        self._scalars(self.epochs, values, int(row["Epoch"]))

    def _scalars(self, writer: Any, values: Mapping[str, float], step: int) -> None:
        if writer is None:
            return
        with self._safely():
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """A full disk ends the board, not the training."""
        try:
            yield
        except OSError as error:
            print(f"note: no more for TensorBoard, {self.folder} cannot be written: {error}", file=sys.stderr)
            self.batches = self.epochs = None
