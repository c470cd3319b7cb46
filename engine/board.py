"""`--tensorboard`: what the records hold, live within an epoch too, and what each test gets wrong, for TensorBoard.

Under `<output>/tensorboard` stand two runs: `batches`, whose steps are batches, and `epochs`, whose steps are epochs.
The CSVs stay the record: what can't be written here is said once, and costs the training nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.accuracy import mean_logits
from dataloader.clips import ClipDataset, TestSampling
from dataloader.loader import Loader
from engine.epoch import TestResult
from engine.state import Training
from utils import InputError, printable, processes

SECONDS = 5.0  # between two looks at the running sums, each of which waits for the device
PAIRS, CLIPS = 10, 6  # shown after a test
TILE, CAPTION = 160, 43  # of a wrong clip, in pixels


class Board:
    """A training's TensorBoard files. With several processes, rank 0's: its share of an epoch in progress."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        """Raises InputError where the package tensorboard is missing. Nothing is written before it is `opened`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.folder, self.class_names, self._make = folder, class_names, SummaryWriter
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

    def test(self, row: Mapping[str, float], result: TestResult, loader: Loader) -> None:
        """A row of the tests' record; the pairs of classes confused most, and the clips that were most surely wrong."""
        self._rows("test", row)
        if self.epochs is None:
            return
        names = list(result.labels)
        scores = mean_logits(np.stack([result.frame_logits[name] for name in names]))  # (videos, classes)
        truth, guess = np.array(list(result.labels.values())), scores.argmax(1)
        wrong = np.flatnonzero(guess != truth)
        pairs = Counter(zip(truth[wrong].tolist(), guess[wrong].tolist(), strict=True)).most_common(PAIRS)
        lines = ["| is | called | videos |", "| --- | --- | --- |"]
        lines += [f"| {self._cell(is_)} | {self._cell(called)} | {count} |" for (is_, called), count in pairs]
        margin = scores[wrong, guess[wrong]] - scores[wrong, truth[wrong]]
        chosen = wrong[np.argsort(-margin, kind="stable")[:CLIPS]].tolist()
        step = int(row["Epoch"])
        with self._safely():
            self.epochs.add_text("test/confused most", "\n".join(lines) if pairs else "nothing", step)
            if chosen:
                tiles = [
                    tile(middle_image(loader.dataset, at), names[at], self.class_names[truth[at]],
                         self.class_names[guess[at]])
                    for at in chosen
                ]  # fmt: skip
                self.epochs.add_image("test/wrong", np.concatenate(tiles, 1), step, dataformats="HWC")
            self.epochs.flush()

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

    def _cell(self, label: int) -> str:
        return printable(self.class_names[label]).replace("|", "\\|")

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """A full disk ends the board, not the training."""
        try:
            yield
        except OSError as error:
            print(f"note: no more for TensorBoard, {self.folder} cannot be written: {error}", file=sys.stderr)
            self.batches = self.epochs = None


def middle_image(dataset: ClipDataset, index: int) -> np.ndarray:
    """What the network saw in the middle of a test video: (size, size, 3) uint8; of flow, x beside y, in grey."""
    batch = dataset[0, index]
    if batch.error is not None:  # the test has just read it
        return np.zeros((TILE, TILE, 3), np.uint8)
    views = dataset.sampling.views if isinstance(dataset.sampling, TestSampling) else 1
    clip = batch.images[batch.clips[len(batch.clips) // views // 2]]  # (time steps, planes, size, size)
    planes = clip[len(clip) // 2].numpy()
    if len(planes) == 2:
        return np.stack([np.concatenate(planes, 1)] * 3, -1)
    return planes.transpose(1, 2, 0)


def tile(image: np.ndarray, video: str, is_: str, called: str) -> np.ndarray:
    """A picture with a caption below, (TILE + CAPTION, TILE or twice that, 3) uint8."""
    width = max(TILE, round(image.shape[1] / image.shape[0] * TILE))
    whole = Image.new("RGB", (width, TILE + CAPTION), "white")
    whole.paste(Image.fromarray(np.ascontiguousarray(image)).resize((width, TILE)), (0, 0))
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(10)
    for line, text in enumerate((video, is_, f"called {called}")):
        draw.text((3, TILE + 2 + 13 * line), printable(text), "black", font)
    return np.asarray(whole)
