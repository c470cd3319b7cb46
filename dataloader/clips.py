"""Loading of clips: workers sample, read and crop them, and join them to batches; the device lays them out.

disk -> decode (each image of a video once) -> crop -> resize -> Batch of uint8 images -> device -> `clips_of`
"""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataloader.extracted import extraction_settings
from dataloader.frames import Index, ReadSteps, Source, find_sources
from dataloader.lists import Split, Video, hold_out_groups, load_split
from dataloader.preparation import TSN_SCALES, Box, Preparation, empty_images, flip_clips, flow_picture, stack_resized
from dataloader.sampling import EpochBatches, TestSampling, TrainSampling, rng_for, train_starts
from utils import InputError, cpu_count, plural, processes, rank

SENT_AS_ARRAYS = ("labels", "clips", "flip")
PREFETCHED = 2  # batches that each worker prepares in advance


class Batch(NamedTuple):
    """Clips of several videos. An image shared by several clips is stored once; `clips` indexes `images`."""

    names: list[str]
    labels: Tensor  # (videos,) int64
    images: Tensor  # (images, planes, size, size) uint8
    clips: Tensor  # (videos * clips per video, time steps) int64: rows of `images`
    flip: Tensor  # (videos * clips per video,) bool
    # Of each video's loss in the step of all processes. 0: a repeat that only keeps this process in step.
    weight: float = 1.0


class ClipDataset(Dataset):
    """A dataset of videos as uint8 clips. Item (epoch, index) depends on (seed, epoch, index) alone.

    The type of `sampling` makes it a training or a test set. For an unreadable video the item is an
    InputError, because an exception raised in a worker would arrive as a traceback.
    """

    def __init__(
        self, sources: Sequence[Source], read: ReadSteps, preparation: Preparation,
        sampling: TrainSampling | TestSampling, *, seed: int = 0,
    ) -> None:  # fmt: skip
        self.sources, self.read, self.preparation, self.seed = sources, read, preparation, seed
        self.sampling: Any = sampling
        unit, length = "flow pair" if preparation.modality == "flow" else "frame", preparation.clip_length
        for source in sources:
            if source.count < length:
                raise InputError(f"{source.folder} has {plural(source.count, unit)} and one clip needs {length}: "
                                 "take the video off the lists, or extract it again")  # fmt: skip

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: tuple[int, int]) -> Batch | InputError:
        epoch, index = key
        try:
            return self.clips(self.sources[index], rng_for(self.seed, epoch, index))
        except InputError as error:
            return error

    def clips(self, source: Source, rng: np.random.Generator) -> Batch:
        """Return one video's clips. Raises InputError for unreadable images."""
        preparation, sampling = self.preparation, self.sampling
        length = preparation.clip_length
        if isinstance(sampling, TrainSampling):
            starts = train_starts(source.count - length + 1, sampling.segments, rng)  # (segments,)
            views = crops = 1
            flip = [sampling.flip and bool(rng.integers(2))] * sampling.segments
        else:
            starts = sampling.starts_in(source.count, preparation)  # (samples,)
            # 2 and 10 views are 1 and 5 crops and their flips.
            views, crops = sampling.views, 5 if sampling.views >= 5 else 1
            flip = [view >= crops for view in range(views) for _ in starts]
        # Clips overlap, so read each time step once. steps (different,); rows: each clip's places in them.
        steps, rows = np.unique(starts[:, None] + np.arange(length), return_inverse=True)
        images = stack_resized(self._crops(source, steps.tolist(), rng), len(steps) * crops, preparation.size)
        if preparation.picture:  # (steps * crops, planes, size, size) uint8
            images = flow_picture(images, preparation)  # its two planes become three
        clips = torch.from_numpy(rows.reshape(len(starts), length)) * crops  # (samples, length): rows of images
        clips = torch.cat([clips + view % crops for view in range(views)])  # (views * samples, length)
        return Batch([source.video.name], torch.tensor([source.video.label]), images, clips, torch.tensor(flip))

    def _crops(self, source: Source, steps: Sequence[int], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the crops of each step's image in turn, each (planes, height, width) uint8."""
        shape: tuple[int, ...] = ()
        boxes: list[Box] = []
        for step, image in zip(steps, self.read(source.frames, steps), strict=True):
            if not boxes:
                shape = image.shape
                boxes = self.sampling.boxes(shape[1], shape[2], self.preparation, rng)
            elif image.shape != shape:
                (_, height, width), (_, other_height, other_width) = shape, image.shape
                raise InputError(f"{source.folder}: image {step + 1} is {other_width}x{other_height}, those before "
                                 f"{width}x{height}; extract this video again")  # fmt: skip
            for box in boxes:
                yield image[:, box.top : box.top + box.height, box.left : box.left + box.width]


class Collate:
    """Join videos to one batch: concatenate their images and renumber their clips.

    A worker reuses shared memory for the images, because the system needs longer to provide fresh memory than
    the worker to fill it. Of a worker's batches, PREFETCHED are ready or in progress, and the main process
    uses one until it requests the next (Loader.epoch). Older memory is free.
    """

    def __init__(self) -> None:
        self.memory = [torch.empty(0, dtype=torch.uint8)] * (PREFETCHED + 1)

    def __call__(self, items: list[Batch | InputError]) -> Batch | InputError:
        if error := next((item for item in items if isinstance(item, InputError)), None):
            return error
        batches = [item for item in items if isinstance(item, Batch)]
        *offsets, count = itertools.accumulate((len(one.images) for one in batches), initial=0)
        in_worker, memory = get_worker_info() is not None, None
        planes, height, width = batches[0].images.shape[1:]
        if in_worker:
            size = count * planes * height * width
            self.memory.append(self.memory.pop(0))  # the oldest is free
            if len(self.memory[-1]) < size:
                self.memory[-1] = torch.empty(size, dtype=torch.uint8).share_memory_()
            memory = self.memory[-1][:size]
        images = empty_images(count, planes, height, width, memory)
        torch.cat([one.images for one in batches], out=images)  # (all images, planes, size, size)
        batch = Batch(
            names=[name for one in batches for name in one.names],
            labels=torch.cat([one.labels for one in batches]),
            images=images,
            clips=torch.cat([one.clips + offset for one, offset in zip(batches, offsets, strict=True)]),
            flip=torch.cat([one.flip for one in batches]),
        )
        # Sending a tensor takes a shared file; small tensors are faster as plain arrays.
        if in_worker:
            return batch._replace(**{name: getattr(batch, name).numpy() for name in SENT_AS_ARRAYS})
        return batch


def sent_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with images on `device`. A GPU receives the next batch while it computes on one."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            images, clips = (t.to(device, non_blocking=True) for t in (batch.images, batch.clips))
        return batch._replace(images=images, clips=clips), stream.record_event()

    sent = map(send, batches)
    ahead = next(sent, None)
    while ahead is not None:
        (batch, event), ahead = ahead, next(sent, None)  # the next one is on its way before this one is used
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in (batch.images, batch.clips):
            tensor.record_stream(current)  # do not reuse its memory before this stream is done
        yield batch


def clips_of(batch: Batch, modality: str, device: torch.device) -> Tensor:
    """Return clips on `device`: uint8 (videos * clips each, images x planes, size, size), channels last."""
    # On a GPU, sent_ahead has already moved them. Elsewhere a worker may overwrite them later.
    clips = batch.images.to(device)[batch.clips.to(device)]  # (clips, time steps, planes, size, size)
    clips = clips.flatten(1, 2)  # (clips, time steps * planes, size, size)
    if bool(batch.flip.any()):
        clips = flip_clips(clips, batch.flip.to(device, non_blocking=True), modality)
    return clips.contiguous(memory_format=torch.channels_last)


STOPPING = (signal.SIGINT, signal.SIGTERM)


class Loader:
    """A DataLoader over one split with numbered epochs, which can start in the middle of an epoch.

    Training sets are shuffled with the dataset's seed; test sets stay in list order.
    """

    def __init__(self, dataset: ClipDataset, batch_size: int, workers: int | None, device: torch.device) -> None:
        """`batch_size`: videos per batch over all processes. `workers`: None: one per core, at most 16."""
        self.dataset, self.batch_size = dataset, batch_size
        seed = dataset.seed if isinstance(dataset.sampling, TrainSampling) else None
        self.batches = EpochBatches(len(dataset), batch_size, seed=seed, rank=rank(), processes=processes())
        workers = min(cpu_count(), 16) if workers is None else workers
        self.loader = DataLoader(
            dataset, batch_sampler=self.batches, collate_fn=Collate(), num_workers=workers,
            persistent_workers=workers > 0, prefetch_factor=PREFETCHED if workers else None,
            pin_memory=device.type == "cuda", worker_init_fn=_start_worker,
            generator=torch.Generator(),  # a separate one, so that loading never draws from the training's
        )  # fmt: skip

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return len(self.batches.edges) - 1

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from `first_batch` on. Raises InputError for an unreadable file.

        A batch's images are valid only until the next batch is requested.
        """
        self.batches.epoch, self.batches.first_batch = epoch, first_batch
        with contextlib.ExitStack() as stack:
            if hasattr(signal, "pthread_sigmask"):  # not on Windows
                # Ctrl-C and SIGTERM would kill a worker until it ignores them: hold them back for so long.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
                stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            batches = iter(self.loader)
        for number, batch in enumerate(batches, first_batch):
            if isinstance(batch, InputError):
                raise batch
            videos = self.batches.size(number)  # over all processes, because gradients are averaged
            weight = processes() / videos if rank() < videos else 0.0
            yield batch._replace(weight=weight, **{n: torch.as_tensor(getattr(batch, n)) for n in SENT_AS_ARRAYS})


def _start_worker(_: int) -> None:
    # Use one decoding thread per worker: the workers are the parallelism. Ctrl-C and SIGTERM reach the whole
    # process group, but only the main process handles them.
    torch.set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@dataclass(frozen=True)
class Data:
    """A split's loaders. `select` (validation videos or `test`) chooses the model and drives the schedule."""

    split: Split
    train: Loader | None  # None for evaluation only
    select: Loader
    test: Loader
    root: Path  # of the images

    def about(self) -> dict[str, Any]:
        """Return how files describe the split: its dataset, number and classes."""
        return {"dataset": self.split.dataset, "split": self.split.number, "class_names": self.split.class_names}

    def frames(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Return where these videos' images are, as files store it: the root and each folder below it."""
        folders = {source.video.name: os.path.relpath(source.folder, self.root) for source in sources}
        return {"root": str(self.root.resolve()), "folders": folders}


def make_data(
    index: Index, read: ReadSteps, preparation: Preparation, device: torch.device, *, ucf_list: Path | None,
    split: str, testing: TestSampling, training: TrainSampling | None, batch_size: int = 1, val_groups: int = 0,
    allow_missing: bool = False, workers: int | None = None, seed: int = 0,
) -> Data:  # fmt: skip
    """Match a split with the images on disk, and make its loaders; see the flags of these names.

    Without `ucf_list`, UCF101's group rule makes the split. Without `training`, there is only evaluation.
    """
    videos = load_split(ucf_list, split, index.names, verbose=rank() == 0)
    if len(videos.class_names) < 2:
        raise InputError(f"all videos are of one class, {videos.class_names[0]}: nothing to tell apart; add a class")

    def loader(of_subset: list[Video], sampling: TrainSampling | TestSampling, batch: int, subset: str) -> Loader:
        sources = find_sources(index, of_subset, allow_missing)
        if not sources:
            raise InputError(f"no {subset} video of split {videos.number} is under {index.root}; check --ucf-list")
        return Loader(ClipDataset(sources, read, preparation, sampling, seed=seed), batch, workers, device)

    needs_every_frame = preparation.modality != "rgb"  # flow and differences
    if not needs_every_frame:
        testing = replace(testing, every=extraction_settings(index.root).get("sampling_rate") or 1)
    test_batch = max(1, (256 if device.type == "cuda" else 32) // testing.clips)  # videos
    select = test = loader(videos.test, testing, test_batch, "test")
    trained, train = videos.train, None
    if val_groups:
        trained, validation = hold_out_groups(videos.train, val_groups)
        select = loader(validation, testing, test_batch, "validation")
    if training is not None:
        scales = TSN_SCALES[:3] if needs_every_frame else TSN_SCALES  # as in TSN's code
        train = loader(trained, replace(training, scales=scales), batch_size, "training")
    return Data(videos, train, select, test, index.root)
