"""What both streams do with a network: train it for an epoch, and test it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataloader.clips import Batch, Loader, TestSampling, clips_of, each_once, sent_ahead
from dataloader.transforms import Preparation, to_input
from engine.state import Training, amp_dtype
from network import InferenceNet, freeze_batchnorm
from utils import InputError, accuracy, cross_entropy, seed_step, world


@dataclass(frozen=True)
class TestResult:
    """What a test found. Logits are float32, (samples, classes) per video, averaged over views."""

    frame_logits: dict[str, np.ndarray]
    labels: dict[str, int]
    features: dict[str, np.ndarray]  # (samples, features) per video, where asked for
    loss: float  # cross-entropy of the video-level logits
    accuracy: dict[str, float]  # top1, top5, mean_class in per cent
    batch_time: float
    data_time: float


# --- training ------------------------------------------------------------------------------------------


def consensus(logits: Tensor, clips: int) -> Tensor:
    """(videos * clips, classes) -> (videos, classes): the mean over a video's clips (TSN, section 3.1)."""
    return logits.unflatten(0, (-1, clips)).mean(1)


def train_one_epoch(
    training: Training,
    model: nn.Module,
    loader: Loader,
    preparation: Preparation,
    args: Any,
    device: torch.device,
    after_batch: Callable[[], None],
    problems: dict[str, str],
) -> dict[str, float]:
    """Train the epoch in progress to its end and return its record row.

    `model` is training.model, or its DistributedDataParallel wrapper. `after_batch` is called when a batch
    is complete in every respect: there a run may be saved or stopped.
    """
    model.train()
    if args.partial_bn:
        freeze_batchnorm(model)
    dtype = amp_dtype(args.amp, device)
    recent: list[tuple[list[str], Tensor]] = []  # losses not yet looked at: looking waits for the device
    shown = 0.0
    start = asked = time.perf_counter()
    clips_seen = 0
    with progress_bar(len(loader), f"epoch {training.epoch}", "batch", training.batch) as bar:
        for batch in sent_ahead(loader.epoch(training.epoch, training.batch), device):
            training.times[1] += time.perf_counter() - asked
            problems.update(batch.problems)
            loss = train_step(training, model, batch, preparation, args, device, dtype, loader)
            recent.append((batch.names, loss))
            training.batch += 1
            clips_seen += len(batch.clips)
            now = time.perf_counter()
            training.times[0] += now - asked
            if now - shown > 0.5 or len(recent) >= 50 or training.batch == len(loader):
                check_finite(recent)
                mean_loss, top1 = (100 * training.sums[:2] / training.sums[3]).tolist()
                rate = clips_seen * world()[1] / (time.perf_counter() - start)
                figures = f"loss {mean_loss / 100:.3f}, top-1 {top1:.1f} %, {rate:.0f} clips/s"
                bar.set_postfix_str(figures, refresh=False)
                shown = now
            bar.update()
            after_batch()
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


def train_step(
    training: Training,
    model: nn.Module,
    batch: Batch,
    preparation: Preparation,
    args: Any,
    device: torch.device,
    dtype: torch.dtype,
    loader: Loader,
) -> Tensor:
    """Forward, backward and one step of SGD on a batch. Returns the batch's mean loss, still on the device."""
    seed_step(args.seed, training.epoch, training.batch)
    inputs = to_input(clips_of(batch, preparation.modality, device), preparation)
    labels = batch.labels.to(device, non_blocking=True)
    clips = len(batch.clips) // len(batch.names)
    # Gradients are averaged over processes whose shares may differ in size: weigh each by its share.
    first = (training.batch) * loader.batch_size
    everyone = min(loader.batch_size, len(loader.dataset) - first)
    weight = world()[1] / everyone if batch.counted else 0.0
    training.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    parts = min(args.accumulate, len(batch.names))
    edges = [len(batch.names) * part // parts for part in range(parts + 1)]
    for low, high in itertools.pairwise(edges):
        last = high == len(batch.names)
        with contextlib.ExitStack() as stack:
            if not last and isinstance(model, DistributedDataParallel):
                stack.enter_context(model.no_sync())
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(inputs[low * clips : high * clips])
            scores = consensus(logits.float(), clips)
            target = labels[low:high]
            loss = nn.functional.cross_entropy(scores, target, reduction="sum", label_smoothing=args.label_smoothing)
            training.scaler.scale(loss * weight).backward()
        with torch.no_grad():
            rank = (scores > scores.gather(1, target[:, None])).sum(1)
            counts = torch.stack((loss, (rank < 1).sum(), (rank < 5).sum(), loss.new_full((), high - low)))
            training.sums += counts * bool(batch.counted)
            total += loss
    if args.clip_grad:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), args.clip_grad)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    return total / len(batch.names)


def check_finite(recent: list[tuple[list[str], Tensor]]) -> None:
    """Look at the losses since the last look, and stop at the first that is no number. Empties the list."""
    losses = torch.stack([loss for _, loss in recent])
    if not bool(losses.isfinite().all()):
        names = next(names for (names, _), loss in zip(recent, losses, strict=True) if not loss.isfinite())
        raise InputError(
            f"the loss is no longer a number, in the batch of {', '.join(names)}: use a smaller --lr, --clip-grad 40 "
            "or --amp off; the last checkpoint is from before"
        )
    recent.clear()


def progress_bar(total: int, what: str, unit: str, done: int = 0) -> tqdm:
    """A bar on rank 0: alive in a terminal, a line a minute in a log file."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=done, desc=what, unit=unit, leave=False, disable=world()[0] > 0,
        dynamic_ncols=terminal, mininterval=0.1 if terminal else 60, maxinterval=10 if terminal else 60,
    )  # fmt: skip


# --- testing -------------------------------------------------------------------------------------------


@torch.inference_mode()
def test(
    model: nn.Module,
    loader: Loader,
    preparation: Preparation,
    args: Any,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> TestResult:
    """Logits of every video, in all processes together. The network's training state is left as it is."""
    net = InferenceNet(model, preparation, amp_dtype(args.amp, device), args.compile).to(device)
    sampling = loader.dataset.sampling
    assert isinstance(sampling, TestSampling)
    logits: dict[str, np.ndarray] = {}
    features: dict[str, np.ndarray] = {}
    processes = world()[1]
    start = asked = time.perf_counter()
    waited = 0.0
    correct = seen = 0
    with progress_bar(len(loader.dataset), "test", "video") as bar:
        for batch in sent_ahead(map(each_once, loader.epoch(0)), device):
            waited += time.perf_counter() - asked
            if batch.counted:
                outputs = net(clips_of(batch, preparation.modality, device))
                shape = (len(batch.names), sampling.views, sampling.samples)
                outputs = (output[batch.place].unflatten(0, shape).mean(1) for output in outputs)
                clip_logits, clip_features = (output.cpu().numpy() for output in outputs)
                logits.update(zip(batch.names, clip_logits, strict=True))
                if args.features:
                    features.update(zip(batch.names, clip_features, strict=True))
                correct += int((clip_logits.mean(1).argmax(1) == batch.labels.numpy()).sum())
                seen += len(batch.names)
                rate = seen * sampling.clips / (time.perf_counter() - start)
                bar.set_postfix_str(f"top-1 {100 * correct / seen:.1f} %, {rate:.0f} clips/s", refresh=False)
            bar.update(min(len(batch.names) * processes, bar.total - bar.n))
            check_stop()
            asked = time.perf_counter()
    seconds = time.perf_counter() - start
    if processes > 1:
        everyone: list[Any] = [None] * processes
        dist.all_gather_object(everyone, (logits, features))
        logits = {name: value for part, _ in everyone for name, value in part.items()}
        features = {name: value for _, part in everyone for name, value in part.items()}
    videos = [source.video for source in loader.dataset.sources]
    logits = {video.name: logits[video.name] for video in videos}  # in list order, however it was shared out
    scores = np.stack([frames.mean(0) for frames in logits.values()])
    labels = {video.name: video.label for video in videos}
    truth = np.array(list(labels.values()))
    return TestResult(
        logits, labels, {name: features[name] for name in logits} if args.features else {},
        cross_entropy(scores, truth), accuracy(scores, truth), seconds / len(loader), waited / len(loader),
    )  # fmt: skip
