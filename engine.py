"""What both streams do with a network: train an epoch, test, and the loop over epochs that can be killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import options
from checkpoints import read_checkpoint
from dataloader.clips import Batch, Loader, clips_of
from dataloader.loaders import Data
from dataloader.transforms import Preparation
from network import InferenceNet, freeze_batchnorm
from training import Training, amp_dtype
from utils import (
    InputError,
    accuracy,
    atomic_path,
    check_output,
    cross_entropy,
    save_checkpoint,
    seed_step,
    weights_hash,
    world,
    write_predictions,
    write_record,
)


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
        for batch in loader.epoch(training.epoch, training.batch):
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
                bar.set_postfix_str(f"loss {mean_loss / 100:.3f}, top-1 {top1:.1f} %, {rate:.0f} clips/s", refresh=False)
                shown = now
            bar.update()
            after_batch()
            asked = time.perf_counter()
    sums = _sum_over_processes(training.sums)
    loss_sum, top1, top5, videos = sums.tolist()
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
    inputs = clips_of(batch, preparation, device)
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
            counts = torch.stack((loss.detach(), (rank < 1).sum(), (rank < 5).sum(), loss.new_tensor(high - low)))
            training.sums += counts * bool(batch.counted)
            total += loss.detach()
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


def _sum_over_processes(sums: Tensor) -> Tensor:
    if world()[1] > 1:
        sums = sums.clone()
        dist.all_reduce(sums)
    return sums


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
    net = InferenceNet(model, amp_dtype(args.amp, device)).to(device)
    if args.compile:
        net.compile()
    sampling = loader.dataset.sampling
    logits: dict[str, np.ndarray] = {}
    features: dict[str, np.ndarray] = {}
    processes = world()[1]
    start = asked = time.perf_counter()
    waited = 0.0
    correct = seen = 0
    with progress_bar(len(loader.dataset), "test", "video") as bar:
        for batch in loader.epoch(0):
            waited += time.perf_counter() - asked
            if batch.counted:
                outputs = net(clips_of(batch, preparation, device))
                shape = (len(batch.names), sampling.views, sampling.samples)
                clip_logits, clip_features = (output.unflatten(0, shape).mean(1).cpu().numpy() for output in outputs)
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


# --- the loop over epochs ------------------------------------------------------------------------------


class Run:
    """One stream's training or test: where it writes, and how it stops.

    Each epoch ends by writing, in this order: records, predictions, model_best, checkpoint. The checkpoint
    is the commit: a run killed before it does the epoch again, to the same bits, and replaces what it wrote.
    """

    def __init__(
        self, stream: str, prefix: str, args: Any, data: Data, preparation: Preparation, device: torch.device
    ) -> None:
        self.stream, self.prefix, self.args, self.data = stream, prefix, args, data
        self.preparation, self.device = preparation, device
        self.output = Path(args.output)
        self.leads = world()[0] == 0  # only rank 0 writes and speaks
        self.problems: dict[str, str] = {}  # videos that --on-error skip replaced
        self.signal: int | None = None
        self.saved_at = time.monotonic()

    def say(self, text: str) -> None:
        if self.leads:
            tqdm.write(text)
            sys.stdout.flush()

    def fit(self, training: Training) -> int:
        """Train to --epochs, testing as asked, and leave the best epoch's predictions. Returns the exit code."""
        args = self.args
        model = training.for_training(args, self.device)
        size = sum(tensor.nbytes for tensor in training.model.state_dict().values())
        if self.leads:  # weights, momentum and average, in two checkpoints and a temporary one
            check_output(self.output, 3 * (3 if training.ema else 2) * size)
        self.say(self._headline())
        if args.val_groups:
            self.say(f"model_best is chosen by the last {args.val_groups} groups of each class, held out of training")
        else:
            self.say("model_best is chosen by the test set, as the original's was; --val-groups 3 chooses without it")
        if training.epoch >= args.epochs:
            self.say(f"all {args.epochs} epochs are done; --epochs N trains further")
        with self._signals():
            try:
                last_is_best = False
                while training.epoch < args.epochs:
                    last_is_best = self._epoch(training, model)
                if not last_is_best or args.val_groups:
                    self._report_best(training)
            except _Stopped:
                self.say(
                    f"stopped by {signal.Signals(self.signal).name}; nothing is lost. Go on with --resume "
                    f"{self.output / 'checkpoint.pth.tar'}"
                )
                return 128 + self.signal
        if self.problems:
            self.say(f"{len(self.problems)} videos could not be read and were replaced:")
            for name, reason in sorted(self.problems.items()):
                self.say(f"  {name}: {reason}")
        return 0

    def evaluate(self, training: Training) -> int:
        """Test on the test videos, write both prediction files, and say the result. Returns the exit code."""
        if self.leads:
            check_output(self.output, 0)
        self.say(self._headline())
        name = Path(self.args.resume).name
        with self._signals():
            try:
                result = self._test(training.tested_model, self.data.test)
            except _Stopped:
                self.say("stopped; the old predictions are untouched")
                return 128 + self.signal
        self._write(result, training.tested_model, self.data.test, "test", training.epoch - 1, name)
        self.say(f"test of {name}: {_summary(result)}")
        return 0

    def _headline(self) -> str:
        data, split = self.data, self.data.split
        train = f"{len(data.train.dataset)} training and " if data.train else ""
        dtype = str(amp_dtype(self.args.amp, self.device)).removeprefix("torch.")
        processes = f" x {world()[1]} processes" if world()[1] > 1 else ""
        return (
            f"{self.stream} stream: {split.dataset} split {split.number}, {len(split.class_names)} classes, "
            f"{train}{len(data.test.dataset)} test videos; {self.args.arch} on {self.device.type}{processes}, {dtype}"
        )

    def _epoch(self, training: Training, model: nn.Module) -> bool:
        args, data = self.args, self.data
        row = train_one_epoch(
            training, model, data.train, self.preparation, args, self.device,
            lambda: self._after_batch(training), self.problems,
        )  # fmt: skip
        if self.leads:
            write_record(self.output / f"{self.prefix}_train.csv", row)
        line = f"epoch {training.epoch}: loss {row['Loss']:.4f}, top-1 {row['Prec@1']:.2f} %, lr {row['lr']:.3g}"
        is_best = False
        if (training.epoch + 1) % args.eval_every == 0 or training.epoch + 1 == args.epochs:
            _sync_buffers(training.tested_model)
            result = self._test(training.tested_model, data.select, training)
            is_best = result.accuracy["top1"] > training.best_prec1
            training.best_prec1 = max(training.best_prec1, result.accuracy["top1"])
            subset = "val" if args.val_groups else "test"
            self._write(result, training.tested_model, data.select, subset, training.epoch, "checkpoint.pth.tar")
            if self.leads:
                times = {"Batch Time": result.batch_time, "Data Time": result.data_time}
                scores = {"Loss": result.loss, "Prec@1": result.accuracy["top1"], "Prec@5": result.accuracy["top5"]}
                write_record(self.output / f"{self.prefix}_test.csv", {**row, **times, **scores})
            line += f" | {subset}: {_summary(result)}{' (best)' if is_best else ''}"
            if args.schedule == "plateau":
                training.scheduler.step(result.loss)
        if args.schedule != "plateau":
            training.scheduler.step()
        training.next_epoch()
        self._save(training, is_best)
        self.say(line)
        return is_best

    def _report_best(self, training: Training) -> None:
        """Test the best epoch's network, so that its predictions are what stays on disk."""
        path = self.output / "model_best.pth.tar"
        _barrier()
        if not path.is_file():
            return
        best = read_checkpoint(path)
        training.tested_model.load_state_dict(best.tested_state)
        result = self._test(training.tested_model, self.data.test)
        self._write(result, training.tested_model, self.data.test, "test", best.epoch, path.name)
        self.say(f"model_best, of epoch {best.epoch} | test: {_summary(result)}")

    def _test(self, model: nn.Module, loader: Loader, unsaved: Training | None = None) -> TestResult:
        """Test; Ctrl-C in between saves the training that was not saved yet, trained but not tested."""
        return test(model, loader, self.preparation, self.args, self.device, lambda: self._stop_if_asked(unsaved))

    def _after_batch(self, training: Training) -> None:
        self._stop_if_asked(training)
        minutes = self.args.save_every_minutes
        if minutes and time.monotonic() - self.saved_at > 60 * minutes:
            self._save(training, False)

    def _stop_if_asked(self, training: Training | None) -> None:
        asked = self.signal or 0
        if world()[1] > 1:  # all processes must stop after the same batch
            flag = torch.tensor(asked, device=self.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            asked = self.signal = int(flag)
        if asked:
            if training is not None:
                self._save(training, False)
            raise _Stopped

    def _save(self, training: Training, is_best: bool) -> None:
        if not self.leads:
            return
        header = {
            "format": "two-stream", "arch": self.args.arch, "class_names": list(self.data.split.class_names),
            "dataset": self.data.split.dataset, "split": self.data.split.number,
            "preparation": self.preparation.as_dict(), "args": options.as_dict(self.args),
        }  # fmt: skip
        names = ["model_best.pth.tar", "checkpoint.pth.tar"] if is_best else ["checkpoint.pth.tar"]
        save_checkpoint({**header, **training.state_dict()}, *(self.output / name for name in names))
        self.saved_at = time.monotonic()

    def _write(self, result: TestResult, model: nn.Module, loader: Loader, subset: str, epoch: int, name: str) -> None:
        if not self.leads:
            return
        split, sampling = self.data.split, loader.dataset.sampling
        root = self.data.root.resolve()
        about = {
            "dataset": split.dataset, "split": split.number, "subset": subset, "class_names": list(split.class_names),
            "labels": result.labels,
            "protocol": {"samples": sampling.samples, "views": sampling.views, **self.preparation.as_dict()},
            "checkpoint": {"name": name, "epoch": epoch, "weights_sha256": weights_hash(model.state_dict())},
            "frames": {"root": str(root), "folders": {
                s.video.name: os.path.relpath(s.folder, self.data.root) for s in loader.dataset.sources}},
        }  # fmt: skip
        write_predictions(self.output, self.stream, result.frame_logits, about)
        if self.args.features:
            names = list(result.features)
            with atomic_path(self.args.features) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file, videos=np.array(names), labels=np.array([result.labels[n] for n in names]),
                    features=np.stack([result.features[n] for n in names]),
                )  # fmt: skip

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks to stop after the batch; a second one stops at once."""

        def ask(number: int, _: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number
            self.say("stopping after this batch ...")

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Stopped(Exception):
    """Ctrl-C or SIGTERM, noticed between two batches."""


def _summary(result: TestResult) -> str:
    scores = result.accuracy
    return (
        f"loss {result.loss:.4f}, top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
        f"mean class {scores['mean_class']:.2f} %"
    )


def _barrier() -> None:
    if world()[1] > 1:
        dist.barrier()


def _sync_buffers(model: nn.Module) -> None:
    """Give all processes rank 0's batch-norm statistics, as DistributedDataParallel does before each forward."""
    if world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
