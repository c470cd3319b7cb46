"""What changes while a network trains: weights, optimizer, schedule, progress. What a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.resnet import ResNet

from dataloader.transforms import Preparation
from engine import options
from network import explain_mismatch, freeze_batchnorm, parameter_groups
from saved.checkpoints import Checkpoint, read_checkpoint
from utils import InputError, world


def open_checkpoint(args: Any, *modalities: str) -> Checkpoint | None:
    """Read --resume's checkpoint, ours or another project's, for one of `modalities`; None on a fresh start.

    What shaped its training takes the place of the flags that were not given.
    """
    if args.resume is None:
        return None
    checkpoint = read_checkpoint(args.resume, *modalities, flow_order=getattr(args, "flow_order", "original"))
    if "arch" in args.given and args.arch != checkpoint.arch:
        raise InputError(f"--arch {args.arch}: {args.resume} is a {checkpoint.arch}; leave --arch out")
    options.restore(args, checkpoint.args)
    args.arch = checkpoint.arch
    if checkpoint.source != "two-stream" and world()[0] == 0:
        author = "the original repository" if checkpoint.source == "original" else checkpoint.source
        momentum = "" if args.evaluate else "; the optimizer's momentum starts afresh"
        epoch = f", epoch {checkpoint.epoch}" if checkpoint.epoch >= 0 else ""
        print(f"{args.resume}: a checkpoint of {author}{epoch}{momentum}")
    return checkpoint


def choose_preparation(checkpoint: Checkpoint | None, fresh: Preparation, args: Any) -> Preparation:
    """The checkpoint's preparation, changed by the flags that were given; `fresh` where training starts here."""
    if checkpoint is None:
        return fresh
    given = {name: getattr(args, name) for name in ("size", "test_resize") if name in args.given}
    return replace(Preparation.from_dict(checkpoint.preparation), **given)


@dataclass
class Training:
    """Everything that changes while a network trains: what a checkpoint holds and exact resume needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None = None
    epoch: int = 0  # the epoch in progress
    batch: int = 0  # how many of its batches are done
    best_prec1: float = -1.0  # of the tests so far; -1: none
    sums: Tensor = field(default_factory=lambda: torch.zeros(4))  # of the epoch in progress: loss, top1, top5, videos
    times: list[float] = field(default_factory=lambda: [0.0, 0.0])  # and its seconds in all, waiting for data

    @classmethod
    def start(
        cls, model: ResNet, class_names: list[str], args: Any, device: torch.device, checkpoint: Checkpoint | None
    ) -> Training:
        """A training at its first epoch, or where `checkpoint` left it. Moves `model` to the device."""
        if len(class_names) < 2:
            raise InputError(f"all videos are of one class, {class_names[0]}: nothing to tell apart; add a class")
        if checkpoint is not None:
            problem = explain_mismatch(model, checkpoint.state_dict)
            if problem is None and checkpoint.class_names not in (None, class_names):
                its, ours = next((a, b) for a, b in zip(checkpoint.class_names, class_names, strict=True) if a != b)
                problem = f"its classes are others, or in another order ({its} where the lists have {ours})"
            if problem:
                raise InputError(f"{args.resume} does not fit this data: {problem}")
            model.load_state_dict(checkpoint.state_dict, strict=False)  # num_batches_tracked may be absent
        model.to(device, memory_format=torch.channels_last)
        if args.partial_bn:
            freeze_batchnorm(model)
        groups = parameter_groups(model, args.lr, args.weight_decay, getattr(args, "conv1_lr_factor", 1.0))
        optimizer = make_optimizer(groups, args.momentum, device)
        training = cls(
            model,
            optimizer,
            make_scheduler(args, optimizer),
            torch.amp.GradScaler(device.type, enabled=amp_dtype(args.amp, device) == torch.float16),
            make_ema(model, args.ema),
            sums=torch.zeros(4, device=device),
        )
        if checkpoint is not None:
            if checkpoint.source == "two-stream":
                training.load_state_dict(checkpoint.raw, args)
            else:
                training.epoch, training.best_prec1 = checkpoint.epoch + 1, checkpoint.best_prec1
        if args.start_epoch is not None:
            training.next_epoch()
            training.epoch = args.start_epoch
        return training

    def for_training(self, args: Any, device: torch.device) -> nn.Module:
        """The model as a training step calls it: compiled, and over all processes, where that is asked for."""
        model = self.model
        if args.sync_bn:
            if device.type != "cuda":
                raise InputError("--sync-bn needs GPUs: torch has it for no other device")
            model = self.model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if args.compile:
            model.compile()
        if world()[1] == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    @property
    def tested_model(self) -> nn.Module:
        """The network that is tested: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    def sums_of_all(self) -> Tensor:
        """`sums` over all processes, each of which has to call this."""
        sums = self.sums.clone()
        if world()[1] > 1:
            dist.all_reduce(sums)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of this; the same in all processes, each of which has to call this."""
        return {
            "epoch": self.epoch - 1,  # the last one finished, from 0, as in the original's files
            "batch": self.batch,
            "best_prec1": self.best_prec1,
            "state_dict": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums_of_all().cpu(),
            "times": list(self.times),
        }

    def load_state_dict(self, state: dict[str, Any], args: Any) -> None:
        self.epoch, self.batch = state["epoch"] + 1, state["batch"]
        self.best_prec1 = state["best_prec1"]
        self.model.load_state_dict(state["state_dict"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if args.evaluate:
            return
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError:
            raise InputError(
                f"{args.resume} was trained with other flags (--partial-bn): its optimizer does not fit; leave them "
                f"out, or start from its weights with --weights {args.resume}"
            ) from None
        if state["args"]["schedule"] == args.schedule:
            self.scheduler.load_state_dict(state["scheduler"])
        # A new rate given on a resume holds from there on; the same command again goes on with its schedule.
        if "lr" in args.given and args.lr != state["args"]["lr"]:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.scaler.load_state_dict(state["scaler"])
        if world()[0] == 0:  # one process goes on with what all had summed up
            self.sums = state["sums"].to(self.sums.device)
        self.times = list(state["times"])

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums, self.times = torch.zeros_like(self.sums), [0.0, 0.0]


def make_optimizer(groups: list[dict], momentum: float, device: torch.device) -> torch.optim.SGD:
    """SGD over parameter groups, in one fused kernel where torch has one."""
    return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=momentum, fused=device.type in ("cpu", "cuda"))


def make_scheduler(args: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The learning rate's schedule, stepped once per epoch; plateau is stepped by each test's loss."""
    schedules = torch.optim.lr_scheduler
    if args.schedule == "plateau":
        return schedules.ReduceLROnPlateau(optimizer, factor=0.1, patience=args.patience)
    warmup = min(args.warmup_epochs, args.epochs - 1)
    if args.schedule == "step":
        milestones = sorted(round(fraction * args.epochs) - warmup for fraction in args.milestones)
        main: Any = schedules.MultiStepLR(optimizer, milestones, gamma=0.1)
    else:
        main = schedules.CosineAnnealingLR(optimizer, max(1, args.epochs - warmup))
    if not warmup:
        return main
    rise = schedules.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return schedules.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def make_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and batch-norm statistics; None for decay 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


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
