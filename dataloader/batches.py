"""A batch of clips: joined by a loader's worker, sent to the device, and there laid out as a network sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dataloader.transforms import empty_images, flip_clips

SENT_AS_ARRAYS = ("labels", "clips", "flip")
PREFETCHED = 2  # batches that each worker makes ahead


class Batch(NamedTuple):
    """Some videos' clips. Images that several clips share travel once; `clips` says which make a clip."""

    names: list[str]
    labels: Tensor  # (videos,) int64
    images: Tensor  # (images, planes, size, size) uint8
    clips: Tensor  # (videos * clips per video, time steps) int64: rows of `images`
    flip: Tensor  # (videos * clips per video,) bool
    counted: int  # videos that count: 0 for the repeat that keeps processes in step
    problems: list[tuple[str, str]]  # (video, reason) of those replaced by another
    error: str | None = None
    of_all: int = 0  # videos that all processes' shares of this batch make together; 0: not known yet
    activations: Tensor | None = None  # (videos * clips per video, C, h, w): in place of images (engine.frozen)
    place: Tensor | None = None  # (videos * clips per video,) int64: rows of `clips`, if each is there once


class Collate:
    """Joins videos to one batch: images one behind the other, clips renumbered to match.

    A worker puts the images into shared memory that it uses again, because the system takes longer to provide fresh
    memory than the worker to fill it. PREFETCHED batches of a worker are ready or under way, and one is at work in
    the main process until that asks for the next (Loader.epoch): what was used before these is free.
    """

    def __init__(self) -> None:
        self.memory = [torch.empty(0, dtype=torch.uint8)] * (PREFETCHED + 1)
        self.batches = 0

    def __call__(self, items: list[Batch]) -> Batch:
        for item in items:
            if item.error is not None:
                return item
        offsets = np.cumsum([0] + [len(item.images) for item in items])
        in_worker = get_worker_info() is not None
        count, (planes, height, width) = int(offsets[-1]), items[0].images.shape[1:]
        memory = self._memory(count * planes * height * width) if in_worker else None
        images = empty_images(count, planes, height, width, memory)
        torch.cat([item.images for item in items], out=images)  # (all images, planes, size, size)
        batch = Batch(
            [name for item in items for name in item.names],
            torch.cat([item.labels for item in items]),
            images,
            torch.cat([item.clips + int(offset) for item, offset in zip(items, offsets, strict=False)]),
            torch.cat([item.flip for item in items]),
            sum(item.counted for item in items),
            [problem for item in items for problem in item.problems],
        )
        if in_worker:  # a tensor takes a shared file to send; small ones travel faster as plain arrays
            return batch._replace(**{name: getattr(batch, name).numpy() for name in SENT_AS_ARRAYS})
        return batch

    def _memory(self, size: int) -> Tensor:
        self.batches += 1
        place = self.batches % len(self.memory)
        if len(self.memory[place]) < size:
            self.memory[place] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self.memory[place][:size]


def sent_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their images on `device`, each sent to a GPU while the one before is at work there."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, clips = (t.to(device, non_blocking=True) for t in (batch.images, batch.clips))
        sent = batch._replace(images=images, clips=clips), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = sent
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(event)
    for tensor in (batch.images, batch.clips):
        tensor.record_stream(current)  # its memory is not to be used again before this stream is done with it
    return batch


def each_once(batch: Batch) -> Batch:
    """The batch with equal clips of a video only once: `place` says where each clip is now. Shorter videos repeat some.

    What is computed of the clips becomes what it is of all by `output[place]`.
    """
    if batch.error is not None:
        return batch
    different, place = torch.cat([batch.clips, batch.flip[:, None]], 1).unique(dim=0, return_inverse=True)
    return batch._replace(clips=different[:, :-1], flip=different[:, -1].bool(), place=place)


def clips_of(batch: Batch, modality: str, device: torch.device) -> Tensor:
    """A batch's clips on `device`: uint8 (videos * clips per video, images x planes, size, size), channels last."""
    images = batch.images.to(device)  # on a GPU already there (sent_ahead); elsewhere a worker may write to it again
    clips = images[batch.clips.to(device)]  # (clips, time steps, planes, size, size)
    clips = clips.flatten(1, 2)  # (clips, time steps * planes, size, size)
    if bool(batch.flip.any()):
        clips = flip_clips(clips, batch.flip.to(device, non_blocking=True), modality)
    return clips.contiguous(memory_format=torch.channels_last)
