"""What changes while a network trains: weights, optimizer, learning rate, progress. What a checkpoint holds of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dataloader.preparation import Preparation
from network import Network, explain_mismatch, freeze_batchnorm, parameter_groups
from saved.checkpoints import Checkpoint
from utils import InputError, processes, rank


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained. Every field is the flag of the same name; what has no default is each recipe's own."""

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
    warmup_epochs: int = 0
    accumulate: int = 1
    consensus: str = "mean"  # mean | sum
    clip_grad: float = 0.0
    partial_bn: bool = False
    train_from: str = "all"  # all | layer3 | layer4 | fc: what is below keeps its weights (network.ResNet.split)
    label_smoothing: float = 0.0
    colour_jitter: float = 0.0
    ema: float = 0.0
    amp: str = "auto"
    compile: bool = False
    sync_bn: bool = False

    def lr_factor(self, epoch: int) -> float:
        """What the schedule multiplies `lr` by in this epoch, from 0; plateau, which follows the loss, leaves it."""
        if self.schedule == "plateau":
            return 1.0
        warmup = min(self.warmup_epochs, self.epochs - 1)
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        if self.schedule == "step":
            return 0.1 ** sum(epoch >= round(fraction * self.epochs) for fraction in self.milestones)
        done = min(1.0, (epoch - warmup) / (self.epochs - warmup))
        return (1 + math.cos(math.pi * done)) / 2  # Loshchilov and Hutter 2017 (SGDR), equation 5


class Training:
    """A network and everything that changes while it trains: what a checkpoint holds and exact resume needs."""

    def __init__(
        self, model: Network, preparation: Preparation, device: torch.device, settings: TrainingSettings
    ) -> None:
        """Moves `model` to the device."""
        if settings.colour_jitter and preparation.modality == "flow":
            raise InputError("--colour-jitter needs colours, which flow has not; leave it out")
        self.preparation, self.device, self.settings = preparation, device, settings
        self.dtype = amp_dtype(settings.amp, device)
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stepped: nn.Module = self.model  # what a step calls; see `distribute`
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        groups = parameter_groups(self.model, settings.lr, settings.weight_decay, settings.conv1_lr_factor)
        # Where float16's first step overflows, fused SGD keeps what memory held as its momentum (torch 2.14).
        fused = device.type in ("cpu", "cuda") and not self.scaler.is_enabled()
        self.optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
        self.plateau = ReduceLROnPlateau(self.optimizer, factor=0.1, patience=settings.patience)
        # The moving average takes in batch norm's statistics, too.
        average = get_ema_multi_avg_fn(settings.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True) if settings.ema else None
        self.epoch = 0  # the epoch in progress, from 0
        self.batch = 0  # how many of its batches are done
        self.best_prec1 = -1.0  # of the tests so far; -1: none
        # Of the epoch in progress: loss, right in top 1, in top 5, videos. In float64 a sum of float32 losses does not
        # show in which order, and by how many processes, it was made; Metal has none.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, dtype=exact, device=device)
        self.times = [0.0, 0.0]  # and its seconds in all, and waiting for data

    def resume(
        self, checkpoint: Checkpoint, class_names: list[str], start_epoch: int | None = None, trains: bool = True
    ) -> None:
        """Go on where `checkpoint`, ours or another project's, left its training; `settings` win over what it did.

        A run that only tests, and not `trains`, takes the weights and the number of their epoch.
        """
        checkpoint = checkpoint.in_order_of(class_names)
        problem = explain_mismatch(self.model, checkpoint.state_dict)
        if problem is None and checkpoint.class_names not in (None, class_names):
            its, ours = next((a, b) for a, b in zip(checkpoint.class_names, class_names, strict=True) if a != b)
            problem = f"its classes are others, or in another order ({its} where the lists have {ours})"
        if problem:
            raise InputError(f"{checkpoint.path} does not fit this data: {problem}")
        self.model.load_state_dict(checkpoint.state_dict, strict=False)  # num_batches_tracked may be absent
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.state_dict, strict=False)
        if checkpoint.source == "two-stream":
            self._load_progress(checkpoint, trains)
        else:
            self.epoch, self.best_prec1 = checkpoint.epoch + 1, checkpoint.best_prec1
        if start_epoch is not None:
            self.next_epoch()
            self.epoch = start_epoch

    def distribute(self) -> None:
        """Make `stepped` the network as a step calls it: compiled and over all processes, where that is asked for."""
        if self.settings.sync_bn:
            if not self.model.stages:  # whose batch norms may hold activations, which torch would lose
                raise InputError("--sync-bn is not for timm's networks: leave it out")
            if self.device.type != "cuda":
                raise InputError("--sync-bn needs GPUs: torch has it for no other device")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.stepped = self.model
        if self.settings.train_from != "all":
            if processes() > 1:
                raise InputError("--train-from works in one process: start it without torchrun")
            below, self.stepped = self.model.split(self.settings.train_from)
            below.requires_grad_(False)  # and computed once: engine.frozen
        self.set_train_mode()  # DistributedDataParallel asks at its start what needs a gradient
        if self.settings.compile:
            self.stepped.compile()
        if processes() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.stepped = DistributedDataParallel(self.model, device_ids=ids)

    def set_train_mode(self) -> None:
        """Before each epoch. Where only a part of the network is trained, no batch norm is: few videos mislead it."""
        self.stepped.train()
        if self.settings.train_from != "all":
            freeze_batchnorm(self.model, but=0)
        elif self.settings.partial_bn:
            freeze_batchnorm(self.model)

    @property
    def tested_model(self) -> Any:  # a Network
        """The network that is tested: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    def set_lr(self) -> None:
        """Begin an epoch at the schedule's learning rate; plateau's stays where the tests have brought it."""
        if self.settings.schedule != "plateau":
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.settings.lr_factor(self.epoch)

    def take_test(self, top1: float, loss: float) -> bool:
        """Take in a test's result; True if it is the best so far."""
        if self.settings.schedule == "plateau":
            self.plateau.step(loss)
        is_best = top1 > self.best_prec1
        self.best_prec1 = max(self.best_prec1, top1)
        return is_best

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums, self.times = torch.zeros_like(self.sums), [0.0, 0.0]

    def sums_of_all(self) -> Tensor:
        """`sums` over all processes, on the CPU. Each process has to call this."""
        sums = self.sums.clone()
        if processes() > 1:
            dist.all_reduce(sums)
        return sums.cpu()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of this; the same in all processes, each of which has to call this."""
        return {
            "epoch": self.epoch - 1,  # the last one finished, from 0, as in the original's files
            "batch": self.batch,
            "best_prec1": self.best_prec1,
            "state_dict": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums_of_all(),
            "times": list(self.times),
        }

    def _load_progress(self, checkpoint: Checkpoint, trains: bool) -> None:
        """The rest of our own checkpoint: what its optimizer, its plateau and its epoch in progress had come to."""
        state, settings = checkpoint.raw, self.settings
        self.epoch, self.batch = state["epoch"] + 1, state["batch"]
        self.best_prec1 = state["best_prec1"]
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if not trains:
            return
        if "optimizer" not in state:
            raise InputError(
                f"{checkpoint.path} holds weights alone: start from them with --weights, or test: --evaluate"
            )
        if self.batch and settings.batch_size != state["args"]["batch_size"]:
            raise InputError(
                f"{checkpoint.path} stands within an epoch, whose batches --batch-size {settings.batch_size} would cut "
                "anew: finish this epoch first"
            )
        fresh = [dict(group) for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError:
            raise InputError(
                f"{checkpoint.path}: its optimizer is for other weights; start from them with "
                f"--weights {checkpoint.path}"
            ) from None
        # What this run's flags say holds: momentum, decay, rates. Only what plateau took off the rate stays off, unless
        # another --lr is given, which then holds from here on.
        same_lr = settings.lr == state["args"]["lr"]
        plateau = settings.schedule == state["args"]["schedule"] == "plateau"
        for group, new in zip(self.optimizer.param_groups, fresh, strict=True):
            taken_off = group["lr"] / group["initial_lr"] if plateau and same_lr else 1.0
            group.update({name: value for name, value in new.items() if name != "params"})
            group["lr"] = group["initial_lr"] * taken_off
        if plateau:
            self.plateau.load_state_dict(state["scheduler"])
            self.plateau.patience = settings.patience
        self.scaler.load_state_dict(state["scaler"])
        if rank() == 0:  # one process goes on with what all had summed up
            self.sums = state["sums"].to(self.sums)
        self.times = list(state["times"])


def choose_preparation(checkpoint: Checkpoint | None, fresh: Preparation, given: dict[str, Any]) -> Preparation:
    """The checkpoint's preparation, changed by what was `given` by flags; `fresh` where training starts here."""
    if checkpoint is None:
        return fresh
    old = Preparation.from_dict(checkpoint.preparation)
    length = given.get("stack_length", old.stack_length)
    if length != old.stack_length:
        raise InputError(
            f"--stack-length {length}: {checkpoint.path} is a network for {old.stack_length}; leave --stack-length out"
        )
    return replace(old, **given)


def amp_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The type that `--amp` means on this device; auto is bfloat16 only where the hardware computes in it."""
    if choice != "auto":
        return {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    if device.type == "cuda":
        hardware = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        hardware = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16()
    return torch.bfloat16 if hardware else torch.float32


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
