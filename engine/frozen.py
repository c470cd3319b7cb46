"""Training from a stage upwards (--train-from): the frozen part below runs once per clip.

Its output is kept in memory. A small dataset is learned best by training only the end of a network, from a
linear head (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.progress import progress_bar
from dataloader.clips import Batch, ClipDataset, Loader, clips_of
from engine.crossfit import fit_linear
from engine.evaluation import InferenceNet
from engine.training import Training
from utils import InputError, plural

FOLDS = 5  # for choosing the linear head's strength
VERSIONS = 4  # of each video, each with its own clips, crop and flip
MEMORY = 4e9  # bytes of activations


class Kept(NamedTuple):
    """One version of a video: the frozen part's output for its clips."""

    name: str
    label: int
    activations: Tensor  # (clips, C, h, w) or (clips, C), in the network's float32, bfloat16 or float16


class FrozenLoader:
    """A training loader whose batches hold the frozen part's activations instead of clips.

    Each video has `versions`, each with its own clips, crop and flip: epoch e uses those of the loader's
    epoch e mod `versions`. Activations are kept in memory up to `memory` bytes; the rest are recomputed each
    time. Each video is computed alone, so its activations have the same bits every time.
    """

    def __init__(
        self, loader: Loader, training: Training, versions: int = VERSIONS, memory: float = MEMORY
    ) -> None:
        self.loader, self.training, self.versions, self.memory = loader, training, versions, memory
        self.frozen = InferenceNet(  # its second output is the activations
            training.model, training.preparation, training.dtype, head=nn.Identity(),
            trunk=lambda model: model.split(training.settings.train_from)[0],
        ).to(training.device)  # fmt: skip
        self.kept: dict[tuple[int, int], Kept] = {}  # by (version, index)
        self.used = 0  # bytes

    @property
    def dataset(self) -> ClipDataset:
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from `first_batch` on, as dataloader.clips.Loader.epoch does."""
        batches = self.loader.batches
        batches.epoch, batches.first_batch = epoch, first_batch
        orders = [[index for _, index in batch] for batch in batches]
        videos = self.videos([(epoch % self.versions, index) for order in orders for index in order])
        for order in orders:
            own = [next(videos) for _ in order]
            count = sum(len(one.activations) for one in own)
            yield Batch(
                names=[one.name for one in own],
                labels=torch.tensor([one.label for one in own]),
                images=torch.cat([one.activations for one in own]),
                clips=torch.arange(count)[:, None],
                flip=torch.zeros(count, dtype=torch.bool),
                weight=1 / len(own),
            )

    def videos(self, items: Sequence[tuple[int, int]]) -> Iterator[Kept]:
        """Yield these (version, index) items in this order, from memory or computed from disk."""
        computed = self.loader.one_by_one([item for item in items if item not in self.kept])
        for item in items:
            found = self.kept.get(item)
            yield self._compute(item, next(computed)) if found is None else found

    @torch.no_grad()
    def _compute(self, item: tuple[int, int], batch: Batch) -> Kept:
        training = self.training
        clips = clips_of(batch, training.preparation.modality, training.device)  # (clips, images * planes, H, W) uint8
        activations = self.frozen(clips)[1].to(training.dtype).cpu()
        video = Kept(batch.names[0], int(batch.labels[0]), activations)
        if not self.used:
            wanted, fit = len(self.dataset) * self.versions, int(self.memory // activations.nbytes)
            if fit < wanted:
                tqdm.write(
                    f"note: {self.memory / 1e9:g} GB hold the frozen part's output for {fit:,} of {wanted:,} versions "
                    "of videos; the others are computed in every epoch"
                )
        if self.used + activations.nbytes <= self.memory:
            self.kept[item] = video
            self.used += activations.nbytes
        return video


def training_loader(loader: Loader, training: Training) -> Loader | FrozenLoader:
    """Return the loader, wrapped in a FrozenLoader that keeps activations when lower layers are frozen."""
    return loader if training.settings.train_from == "all" else FrozenLoader(loader, training)


def start_from_linear_head(
    training: Training, loader: Loader | FrozenLoader, classes: int, after_video: Callable[[Training], None]
) -> str:
    """Set the last layer to logistic regression on the features of all versions; return a report line.

    Cross-validation on the training videos, by group, chooses its strength. `after_video` may stop the run.
    Raises InputError if the videos cannot be divided into folds.
    """
    assert isinstance(loader, FrozenLoader)
    count = len(loader.dataset)
    items = [(version, index) for version in range(loader.versions) for index in range(count)]
    values: list[list[np.ndarray]] = [[] for _ in range(count)]
    labels = np.zeros(count, np.int64)
    pooled = training.stepped[:-1].eval()  # type: ignore[index]  # all but the last layer
    with progress_bar(len(items), "frozen part", "video") as bar, torch.no_grad():
        for (_, index), video in zip(items, loader.videos(items), strict=True):
            with torch.autocast(training.device.type, training.dtype, enabled=training.dtype != torch.float32):
                features = pooled(video.activations.to(training.device))
            values[index].append(features.float().cpu().numpy())
            labels[index] = video.label
            bar.update()
            after_video(training)
    samples = np.stack([np.concatenate(own) for own in values])  # (videos, versions * clips, features)
    groups = np.array([source.video.group for source in loader.dataset.sources])
    try:
        fit = fit_linear(samples, np.arange(count), labels, groups, classes, FOLDS, training.settings.seed)
    except InputError as error:
        raise InputError(f"no linear head to start from: {error} (or --no-linear-start)") from None
    training.model.load_state_dict(fit.state, strict=False)  # the state has only fc.weight and fc.bias
    return (
        f"starts from a linear head on {plural(count, 'video')} x {samples.shape[1]} clips: top-1 "
        f"{100 * np.mean(fit.held_out.argmax(1) == labels):.2f} % of videos held out of it, C {fit.choice['C']:.3g} by "
        f"{fit.choice['chosen_by']}"
    )
