"""TensorBoard's curves of a training (--tensorboard)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import InputError


class Board:
    """What the records hold, epoch by epoch, for TensorBoard.

    The CSVs stay the record: a full disk ends the board, not the training.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the package tensorboard is missing. Nothing is written before `open`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.folder, self._make = folder, SummaryWriter
        self.writer: Any = None

    def open(self, epoch: int) -> None:
        """Begin at this epoch; points that are to be done again are hidden."""
        with self._safely():
            self.writer = self._make(str(self.folder), purge_step=epoch)

    def add(self, phase: str, row: Mapping[str, float], epoch: int) -> None:
        """One point in each of a record's curves."""
        with self._safely():
            if self.writer is not None:
                for name, value in row.items():
                    self.writer.add_scalar(f"{phase}/{name}", value, epoch)
                self.writer.flush()

    def close(self) -> None:
        with self._safely():
            if self.writer is not None:
                self.writer.close()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print(f"note: no more for TensorBoard, {self.folder} cannot be written: {error}", file=sys.stderr)
            self.writer = None
