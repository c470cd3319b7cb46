"""What both streams do with a network: train it for an epoch, and test it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.progress import duration, progress_bar
from dataloader.clips import Batch, clips_of, sent_ahead
from dataloader.loader import Loader
from dataloader.preparation import to_input
from dataloader.transforms import augment
from engine.frozen import FrozenLoader
from engine.state import Training
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
