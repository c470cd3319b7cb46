"""What both streams do with a network: train it for an epoch, and test it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.accuracy import accuracy, cross_entropy, mean_logits
from common.progress import duration, progress_bar
from dataloader.clips import Batch, TestSampling, clips_of, each_once, sent_ahead
from dataloader.loader import Loader
from dataloader.preparation import to_input
from dataloader.transforms import augment
from engine.frozen import FrozenLoader
from engine.state import Training
from network import InferenceNet
from utils import InputError, processes, rank, seed_step


def consensus(logits: Tensor, clips: int, how: str) -> Tensor:
    """(videos * clips, classes) -> (videos, classes): the mean over a video's clips (TSN, section 3.1), or the sum.

    The original sums: of three clips, a gradient three times the mean's where the scores are still small.
    """
    of_video = logits.unflatten(0, (-1, clips))  # (videos, clips, classes)
    return of_video.mean(1) if how == "mean" else of_video.sum(1)


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Place of the label among a video's scores, (videos,) int64: common.accuracy.ranks, on the device."""
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return (~(scores < own) & ~((scores == own) & ~earlier)).sum(1)


def train_one_epoch(
    training: Training, loader: Loader | FrozenLoader, after_batch: Callable[[Training], None]
) -> dict[str, float]:
    """Train the epoch in progress, from its first batch that is not done, and return its record row.

    `after_batch` is called when a batch is complete in every respect: there a run may be saved or stopped.
    """
    training.set_train_mode()
    recent: list[tuple[list[str], Tensor]] = []  # losses not yet looked at: looking waits for the device
    shown = 0.0
    start = asked = time.perf_counter()
    first, clips_seen = training.batch, 0
    name = f"epoch {training.epoch} of {training.settings.epochs}"
    with progress_bar(len(loader), name, "batch", training.batch, disable=rank() > 0) as bar:
        for batch in sent_ahead(loader.epoch(training.epoch, training.batch), training.device):
            training.times[1] += time.perf_counter() - asked
            loss = train_step(training, batch)
            recent.append((batch.names, loss))
            training.batch += 1
            clips_seen += len(batch.clips)
            now = time.perf_counter()
            training.times[0] += now - asked
            if now - shown > 0.5 or len(recent) >= 50 or training.batch == len(loader):
                check_losses(recent)
                mean_loss, top1 = (training.sums[:2] / training.sums[3]).tolist()
                per_second = clips_seen * processes() / (now - start)
                epochs = training.settings.epochs - training.epoch - training.batch / len(loader)
                left = duration(epochs * len(loader) * (now - start) / (training.batch - first))
                bar.set_postfix_str(
                    f"loss {mean_loss:.3f}, top-1 {100 * top1:.1f} %, {per_second:.0f} clips/s, all epochs: {left}",
                    refresh=False,
                )
                shown = now
            bar.update()
            after_batch(training)
            asked = time.perf_counter()
    loss_sum, top1, top5, videos = training.sums_of_all().tolist()
    return {
        "Epoch": training.epoch,
        "Batch Time": training.times[0] / len(loader),
        "Data Time": training.times[1] / len(loader),
        "Loss": loss_sum / videos,
        "Prec@1": 100 * top1 / videos,
        "Prec@5": 100 * top5 / videos,
        "lr": training.optimizer.param_groups[-1]["lr"],
    }


def train_step(training: Training, batch: Batch) -> Tensor:
    """Forward, backward and one step of SGD on a batch. Returns the batch's mean loss, still on the device."""
    settings, device = training.settings, training.device
    seed_step(settings.seed, training.epoch, training.batch)
    if batch.images.is_floating_point():  # what the frozen part of the network makes of the clips (engine.frozen)
        inputs = batch.images.to(device)
    else:
        images = clips_of(batch, training.preparation.modality, device)  # (videos * clips, images * planes, H, W) uint8
        images = augment(images, batch.names, settings.colour_jitter, settings.seed, training.epoch)
        inputs = to_input(images, training.preparation)  # (videos * clips, channels, H, W) float32
    labels = batch.labels.to(device, non_blocking=True)  # (videos,)
    clips = len(batch.clips) // len(batch.names)
    training.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    parts = min(settings.accumulate, len(batch.names))
    edges = [len(batch.names) * part // parts for part in range(parts + 1)]
    for low, high in itertools.pairwise(edges):
        last = high == len(batch.names)
        with contextlib.ExitStack() as stack:
            if not last and isinstance(training.stepped, DistributedDataParallel):
                stack.enter_context(training.stepped.no_sync())
            with torch.autocast(device.type, training.dtype, enabled=training.dtype != torch.float32):
                logits = training.stepped(inputs[low * clips : high * clips])  # (videos * clips, classes)
            scores = consensus(logits.float(), clips, settings.consensus)  # (videos, classes)
            target = labels[low:high]
            loss = nn.functional.cross_entropy(
                scores, target, reduction="sum", label_smoothing=settings.label_smoothing
            )
            training.scaler.scale(loss * batch.weight).backward()
        with torch.no_grad():
            rank = ranks(scores, target)
            # A multiple of 2**-30, so that float64 adds it up exactly, whoever adds which part first.
            exact = (loss.to(training.sums.dtype) * 2**30).round() / 2**30
            counts = torch.stack((exact, (rank < 1).sum(), (rank < 5).sum(), exact.new_full((), high - low)))
            training.sums += counts * bool(batch.weight)
            total += loss
    if settings.clip_grad:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), settings.clip_grad)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    return total / len(batch.names)


def check_losses(recent: list[tuple[list[str], Tensor]]) -> None:
    """Look at the losses since the last look, and stop at the first that is no number. Empties the list."""
    losses = torch.stack([loss for _, loss in recent])
    if not bool(losses.isfinite().all()):
        names = next(names for (names, _), loss in zip(recent, losses, strict=True) if not loss.isfinite())
        raise InputError(
            f"the loss is no longer a number, in the batch of {', '.join(names)}: use a smaller --lr, --clip-grad 40 "
            "or --amp off; the last checkpoint is from before"
        )
    recent.clear()


@dataclass(frozen=True)
class TestResult:
    """What a test found. Logits are float32, (samples, classes) per video, averaged over views."""

    frame_logits: dict[str, np.ndarray]
    labels: dict[str, int]
    loss: float  # cross-entropy of the training's consensus over a video's clips
    accuracy: dict[str, float]  # top1, top5, mean_class in per cent
    batch_time: float
    data_time: float

    def __str__(self) -> str:
        scores = self.accuracy
        return (
            f"loss {self.loss:.4f}, top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
            f"mean class {scores['mean_class']:.2f} %"
        )


@torch.inference_mode()
def test(training: Training, loader: Loader, check_stop: Callable[[], None] = lambda: None) -> TestResult:
    """Logits of every video, in all processes together. The network's training state is left as it is."""
    preparation, device, settings = training.preparation, training.device, training.settings
    net = InferenceNet(training.tested_model, preparation, training.dtype, settings.compile).to(device)
    sampling = loader.dataset.sampling
    assert isinstance(sampling, TestSampling)
    logits: dict[str, np.ndarray] = {}
    start = asked = time.perf_counter()
    waited = 0.0
    correct = seen = 0
    with progress_bar(len(loader.dataset), "test", "video", disable=rank() > 0) as bar:
        for batch in sent_ahead(loader.epoch(0), device):
            waited += time.perf_counter() - asked
            if batch.weight:
                different, place = each_once(batch)
                of_clips, _ = net(clips_of(different, preparation.modality, device))  # (different clips, classes)
                of_views = of_clips[place].unflatten(0, (len(batch.names), sampling.views, sampling.samples))
                clip_logits = of_views.mean(1).cpu().numpy()  # (videos, samples, classes)
                logits.update(zip(batch.names, clip_logits, strict=True))
                correct += int((mean_logits(clip_logits).argmax(1) == batch.labels.numpy()).sum())
                seen += len(batch.names)
                rate = seen * sampling.clips / (time.perf_counter() - start)
                bar.set_postfix_str(f"top-1 {100 * correct / seen:.1f} %, {rate:.0f} clips/s", refresh=False)
            bar.update(min(len(batch.names) * processes(), bar.total - bar.n))
            check_stop()
            asked = time.perf_counter()
    seconds = time.perf_counter() - start
    if processes() > 1:
        everyone: list[Any] = [None] * processes()
        dist.all_gather_object(everyone, logits)
        logits = {name: value for part in everyone for name, value in part.items()}
    videos = [source.video for source in loader.dataset.sources]
    logits = {video.name: logits[video.name] for video in videos}  # in list order, however it was shared out
    scores = mean_logits(np.stack(list(logits.values())))  # (videos, classes)
    labels = {video.name: video.label for video in videos}
    truth = np.array(list(labels.values()))
    names = list(labels)
    loss = cross_entropy(scores * (sampling.samples if settings.consensus == "sum" else 1), truth, names)
    times = seconds / len(loader), waited / len(loader)
    return TestResult(logits, labels, loss, accuracy(scores, truth, names), *times)
