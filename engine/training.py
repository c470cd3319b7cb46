"""Training of a network: its settings, its state as a checkpoint saves it, and one epoch of steps."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.progress import duration, progress_bar
from dataloader.clips import Batch, Loader, clips_of, sent_ahead
from dataloader.preparation import Preparation, to_input
from network import Network, freeze_batchnorm, parameter_groups
from utils import InputError, amp_dtype, processes, rank, seed_step


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained. Each field is the flag of its name; recipes set those without a default."""

    lr: float
    batch_size: int
    epochs: int = 500
    seed: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    conv1_lr_factor: float = 1.0
    schedule: str = "plateau"  # plateau | step | cosine
    patience: int = 1
    milestones: tuple[float, ...] = ()  # fractions of `epochs`
    accumulate: int = 1
    consensus: str = "mean"  # mean | sum
    clip_grad: float = 0.0
    partial_bn: bool = False
    amp: str = "auto"
    compile: bool = False

    def lr_factor(self, epoch: int) -> float:
        """Return the factor on `lr` in this epoch, from 0, of a schedule that does not follow the loss."""
        if self.schedule == "step":
            return 0.1 ** sum(epoch >= round(fraction * self.epochs) for fraction in self.milestones)
        return (1 + math.cos(math.pi * epoch / self.epochs)) / 2  # Loshchilov and Hutter 2017 (SGDR), equation 5


class Training:
    """A network and all state that training changes: what a checkpoint saves and exact resuming needs."""

    def __init__(
        self, model: Network, preparation: Preparation, device: torch.device, settings: TrainingSettings
    ) -> None:
        """Move `model` to the device."""
        self.preparation, self.device, self.settings = preparation, device, settings
        self.dtype = amp_dtype(settings.amp, device)
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stepped: nn.Module = self.model  # what a training step calls; see `distribute`
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        groups = parameter_groups(self.model, settings.lr, settings.weight_decay, settings.conv1_lr_factor)
        # If float16's first step overflows, fused SGD takes uninitialised memory as momentum (torch 2.14).
        fused = device.type in ("cpu", "cuda") and not self.scaler.is_enabled()
        self.optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
        self.plateau = ReduceLROnPlateau(self.optimizer, factor=0.1, patience=settings.patience)
        self.epoch = 0  # the epoch in progress, from 0
        self.batch = 0  # number of its batches that are done
        self.best_prec1 = -1.0  # best evaluation so far; -1: none
        self.trained_on: frozenset[str] = frozenset()  # names of the videos of training before it was resumed
        # Sums over the epoch in progress: loss, correct in top 1, correct in top 5, videos. In float64, a sum
        # of float32 losses does not depend on the order or the number of processes. Metal has no float64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, dtype=exact, device=device)
        self.times = [0.0, 0.0]  # seconds in the epoch so far: in total, and waiting for data

    def distribute(self) -> None:
        """Set `stepped` to the network as a step calls it: compiled or distributed if the settings say so."""
        self.set_train_mode()  # DistributedDataParallel checks at construction what needs a gradient
        if self.settings.compile:
            self.stepped.compile()
        if processes() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.stepped = DistributedDataParallel(self.model, device_ids=ids)

    def set_train_mode(self) -> None:
        self.stepped.train()
        if self.settings.partial_bn:
            freeze_batchnorm(self.model)

    def set_lr(self) -> None:
        """Set the schedule's learning rate for the epoch. Plateau's stays where evaluations have set it."""
        if self.settings.schedule != "plateau":
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.settings.lr_factor(self.epoch)

    def take_test(self, top1: float, loss: float) -> bool:
        """Record the result of an evaluation; return True if it is the best so far."""
        if self.settings.schedule == "plateau":
            self.plateau.step(loss)
        is_best = top1 > self.best_prec1
        self.best_prec1 = max(self.best_prec1, top1)
        return is_best

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums, self.times = torch.zeros_like(self.sums), [0.0, 0.0]

    def sums_of_all(self) -> Tensor:
        """Return `sums` over all processes, on the CPU. Every process must call this."""
        sums = self.sums.clone()
        if processes() > 1:
            dist.all_reduce(sums)
        return sums.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves, the same in all processes. Every process must call this."""
        return {
            "epoch": self.epoch - 1,  # the last finished epoch, from 0, as in the original's files
            "batch": self.batch,
            "best_prec1": self.best_prec1,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums_of_all(),
            "times": list(self.times),
        }


def consensus(logits: Tensor, clips: int, how: str) -> Tensor:
    """(videos * clips, classes) -> (videos, classes): the mean over clips (TSN, section 3.1), or the sum.

    The original sums. With three clips, its gradient is three times the mean's while scores are still small.
    """
    of_video = logits.unflatten(0, (-1, clips))  # (videos, clips, classes)
    return of_video.mean(1) if how == "mean" else of_video.sum(1)


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the label among a video's scores, (videos,) int64: common.accuracy.ranks, on the device."""
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return (~(scores < own) & ~((scores == own) & ~earlier)).sum(1)


def train_one_epoch(training: Training, loader: Loader, after_batch: Callable[[Training], None]) -> dict[str, float]:
    """Train the epoch in progress, from its first unfinished batch, and return its record row.

    `after_batch` is called when a batch is entirely complete: the run may be saved or stopped there.
    """
    training.set_train_mode()
    recent: list[tuple[list[str], Tensor]] = []  # losses not yet checked: reading them waits for the device
    shown = 0.0
    start = asked = time.perf_counter()
    first, batches, epochs = training.batch, len(loader), training.settings.epochs
    with progress_bar(batches, f"epoch {training.epoch} of {epochs}", "batch", first, disable=rank() > 0) as bar:
        for batch in sent_ahead(loader.epoch(training.epoch, first), training.device):
            training.times[1] += time.perf_counter() - asked
            loss = train_step(training, batch)
            recent.append((batch.names, loss))
            training.batch += 1
            now = time.perf_counter()
            training.times[0] += now - asked
            if now - shown > 0.5 or len(recent) >= 50 or training.batch == batches:
                check_losses(recent)
                mean_loss, top1 = (training.sums[:2] / training.sums[3]).tolist()
                left = (epochs - training.epoch) * batches - training.batch  # batches
                left_time = duration(left * (now - start) / (training.batch - first))
                said = f"loss {mean_loss:.3f}, top-1 {100 * top1:.1f} %, all epochs: {left_time}"
                bar.set_postfix_str(said, refresh=False)
                shown = now
            bar.update()
            after_batch(training)
            asked = time.perf_counter()
    loss_sum, top1, top5, videos = training.sums_of_all().tolist()
    return {
        "Epoch": training.epoch,
        "Batch Time": training.times[0] / batches,
        "Data Time": training.times[1] / batches,
        "Loss": loss_sum / videos,
        "Prec@1": 100 * top1 / videos,
        "Prec@5": 100 * top5 / videos,
        "lr": training.optimizer.param_groups[-1]["lr"],
    }


def train_step(training: Training, batch: Batch) -> Tensor:
    """Do forward, backward and one SGD step on a batch. Return the batch's mean loss, still on the device."""
    settings, device = training.settings, training.device
    seed_step(settings.seed, training.epoch, training.batch)
    images = clips_of(batch, training.preparation.modality, device)  # (videos * clips, images * planes, H, W) uint8
    inputs = to_input(images, training.preparation)  # (videos * clips, channels, H, W) float32
    labels = batch.labels.to(device, non_blocking=True)  # (videos,)
    videos = len(batch.names)
    clips = len(batch.clips) // videos
    training.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    parts = min(settings.accumulate, videos)
    for low, high in itertools.pairwise(videos * part // parts for part in range(parts + 1)):
        with contextlib.ExitStack() as stack:
            if high < videos and isinstance(training.stepped, DistributedDataParallel):
                stack.enter_context(training.stepped.no_sync())  # gradients are averaged once, after the last part
            with torch.autocast(device.type, training.dtype, enabled=training.dtype != torch.float32):
                logits = training.stepped(inputs[low * clips : high * clips])  # (videos * clips, classes)
            scores = consensus(logits.float(), clips, settings.consensus)  # (videos, classes)
            target = labels[low:high]
            loss = nn.functional.cross_entropy(scores, target, reduction="sum")
            training.scaler.scale(loss * batch.weight).backward()
        with torch.no_grad():
            rank = ranks(scores, target)
            # Round to a multiple of 2**-30, so that float64 sums are exact in any order.
            exact = (loss.to(training.sums.dtype) * 2**30).round() / 2**30
            counts = torch.stack((exact, (rank < 1).sum(), (rank < 5).sum(), exact.new_full((), high - low)))
            training.sums += counts * bool(batch.weight)
            total += loss
    if settings.clip_grad:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), settings.clip_grad)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    return total / videos


def check_losses(recent: list[tuple[list[str], Tensor]]) -> None:
    """Check the losses since the last call, then clear the list. Raise InputError if one is not finite."""
    finite = torch.stack([loss for _, loss in recent]).isfinite().tolist()
    if not all(finite):
        names = ", ".join(recent[finite.index(False)][0])
        remedy = "use a smaller --lr, --clip-grad 40 or --amp off; the last checkpoint is from before"
        raise InputError(f"the loss is no longer a number, in the batch of {names}: {remedy}")
    recent.clear()
