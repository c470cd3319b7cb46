"""TensorBoard's curves of a training (--tensorboard)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.training import Training
from utils import InputError


class Board:
    """`--tensorboard`: what the records hold, and within an epoch its sums so far, for TensorBoard.

    `batches` and `epochs` are runs of their own, whose steps are batches and epochs. The CSVs stay the record: a full
    disk ends the board, not the training. With several processes, it is rank 0's share of an epoch in progress.
    """

    SECONDS = 5.0  # between two looks at the running sums, each of which waits for the device

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the package tensorboard is missing. Nothing is written before `open`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.folder, self._make = folder, SummaryWriter
        self.writers: dict[str, Any] = {}
        self.length = 0  # batches in an epoch
        self._looked = 0.0

    def open(self, training: Training, length: int) -> None:
        """Begin where a training of `length` batches an epoch stands; points that are to be done again are hidden."""
        self.length = length
        with self._safely():
            for name, step in (("batches", training.epoch * length + training.batch + 1), ("epochs", training.epoch)):
                self.writers[name] = self._make(str(self.folder / name), purge_step=step)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._safely():
            for writer in self.writers.values():
                writer.close()

    def batch(self, training: Training) -> None:
        """After a batch, some seconds after the last look: the epoch's loss and top-1 so far, and the rate."""
        if time.monotonic() - self._looked < self.SECONDS and training.batch < self.length:
            return
        self._looked = time.monotonic()
        loss, top1, _, videos = training.sums.tolist()
        values = {"train/loss so far": loss / videos, "train/top-1 so far, %": 100 * top1 / videos,
                  "train/lr": training.optimizer.param_groups[-1]["lr"]}  # fmt: skip
        self.add("batches", values, training.epoch * self.length + training.batch)

    def add(self, run: str, values: Mapping[str, float], step: int) -> None:
        """One point in each of a run's curves."""
        with self._safely():
            if run in self.writers:
                for name, value in values.items():
                    self.writers[run].add_scalar(name, value, step)
                self.writers[run].flush()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print(f"note: no more for TensorBoard, {self.folder} cannot be written: {error}", file=sys.stderr)
            self.writers = {}
