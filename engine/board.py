"""TensorBoard curves of a training run (--tensorboard)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import InputError


class Board:
    """Write each epoch's record values to TensorBoard.

    The CSV files remain the record. If the disk is full, only the board stops, and training goes on.
    """

    def __init__(self, folder: Path) -> None:
        """Raise InputError if the package tensorboard is missing. `open` is the first to write anything."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.folder, self._make = folder, SummaryWriter
        self.writer: Any = None

    def open(self, epoch: int) -> None:
        """Start at this epoch. Points of epochs that will be trained again are hidden."""
        with self._safely():
            self.writer = self._make(str(self.folder), purge_step=epoch)

    def add(self, phase: str, row: Mapping[str, float], epoch: int) -> None:
        """Add one point to each curve of a record."""
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
