"""The streams that answer: trained networks and heads, how their clips are made, and what they say together."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from common.progress import progress_bar
from data.jobs import Report, run_jobs
from data.videos import VideoError
from dataloader.clips import Batch, clips_of, each_once
from dataloader.preparation import Preparation
from dataloader.sampling import TestSampling
from engine.evaluation import InferenceNet
from engine.temporal_heads import LinearHead
from recogniser.answers import Answer
from recogniser.decoded import DecodedFrames, Flow
from recogniser.windows import Window, frames_in_memory, whole_video
from utils import InputError, cpu_count, plural

FEW = 4  # videos that are decoded in this process: starting others takes seconds
AT_ONCE = {"cpu": 32, "mps": 32, "cuda": 256}  # clips that a network sees at once


# --- from frames to clips, in any process --------------------------------------------------------------


@dataclass(frozen=True)
class ClipMaker:
    """How one stream's clips are made."""

    name: str  # of the stream, or of one of several inputs of a head
    preparation: Preparation
    sampling: TestSampling
    flow: Flow | None

    def decoded(self, video: str) -> DecodedFrames:
        """The maker of the stream's clips of one video."""
        return DecodedFrames(video, self.preparation, self.sampling, self.flow)


@dataclass(frozen=True)
class Clips:
    """What the networks see of one window, which lies from `start` to `end` seconds."""

    start: float
    end: float
    frames: int  # of the window
    batches: dict[str, Batch]  # by stream, of those that the window is long enough for
    times: dict[str, np.ndarray]  # stream -> (samples,) seconds: the middle of each clip
    too_short: Sequence[str]  # what is wrong for each of the other streams, in words


def make_clips(window: Window, makers: Sequence[ClipMaker], decoded: Sequence[DecodedFrames]) -> Clips:
    """Make each stream's clips of a window. Raises VideoError where it is too short for every stream."""
    batches, times = {}, {}
    too_short = []
    for maker, one in zip(makers, decoded, strict=True):
        if window.count < one.fewest:
            too_short.append(
                f"the video has {plural(window.count, 'frame')}, and the {maker.name} stream needs {one.fewest}"
            )
            continue
        batches[maker.name] = one.clips(window.frames[one.short_side], window.count, window.first)
        times[maker.name] = window.seconds(one.starts(window.count) + one.fewest / 2)
    if not batches:
        raise VideoError(min(decoded, key=lambda one: one.fewest).too_few(window.count))
    return Clips(window.start, window.end, window.count, batches, times, too_short)


def clips_of_video(path: Path, makers: Sequence[ClipMaker]) -> Clips:
    """Decode a whole video and make each stream's clips of it."""
    decoded = [maker.decoded(path.name) for maker in makers]
    return make_clips(whole_video(path, decoded), makers, decoded)


def _work(makers: Sequence[ClipMaker], path: Path, report: Report) -> Clips | str:
    """The job of a worker process: the clips of one video, or why there are none."""
    try:
        found = clips_of_video(path, makers)
    except Exception as error:  # whatever it is, it costs this video only
        return reason(error)
    return replace(found, batches={name: _sent(batch) for name, batch in found.batches.items()})


def reason(error: BaseException) -> str:
    """Why a video failed, in a line."""
    known = isinstance(error, (VideoError, InputError))
    return str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _sent(batch: Batch) -> Batch:
    """The batch with plain arrays, which take no shared memory between processes."""
    parts: list[Any] = [part.numpy() if isinstance(part, Tensor) else part for part in batch]
    return Batch(*parts)


def _received(batch: Batch) -> Batch:
    parts: list[Any] = [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in batch]
    return Batch(*parts)


# --- networks and heads --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """A trained network, and how its clips are made."""

    net: InferenceNet
    maker: ClipMaker
    device: torch.device

    @torch.inference_mode()
    def logits(self, batches: Sequence[Batch]) -> list[np.ndarray]:
        """(samples, classes) float32 of each video, averaged over views. Equal clips are computed once."""
        once = [each_once(batch) for batch in batches]
        clips = torch.cat([clips_of(batch, self.maker.preparation.modality, self.device) for batch, _ in once])
        parts = [self.net(part)[0].float().cpu() for part in clips.split(AT_ONCE[self.device.type])]
        found = []
        counts = [len(batch.clips) for batch, _ in once]
        for (_, place), rows in zip(once, torch.cat(parts).split(counts), strict=True):
            logits = rows[place]  # (different clips, classes) to (views * samples, classes)
            found.append(logits.unflatten(0, (self.maker.sampling.views, self.maker.sampling.samples)).mean(0).numpy())
        return found


@dataclass(frozen=True)
class TrainedHead:
    """A head of heads.py on the features of some streams, whose last layer is no part of them."""

    name: str  # of what it answers: a stream's, or the head's own where it sees both
    head: nn.Module  # in evaluation mode, on the CPU
    inputs: Sequence[str]  # the streams, in the order in which their features are joined

    @torch.inference_mode()
    def answer(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """One video's features (samples, F) by input -> its logits, float32: the mean over the rows.

        A linear head's are (samples, classes), what each sample adds; those of a head over time are (1, classes).
        """
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.inputs], 1)).half()
        if not isinstance(self.head, LinearHead):  # rounded as those it was trained on
            return self.head(joined[None].float()).numpy()
        weight, bias = self.head.fc.weight.double(), self.head.fc.bias.double()
        return nn.functional.linear(joined.double(), weight, bias).float().numpy()


# --- all together --------------------------------------------------------------------------------------

Frames: TypeAlias = str | Path | np.ndarray | Iterable[np.ndarray]


@dataclass(frozen=True)
class Recogniser:
    """All streams together. Call it with a video, or with frames."""

    streams: list[Stream]
    names: list[str]  # of the classes, in label order
    weights: Mapping[str, float]  # of the streams
    unknown_below: float = 0.0  # probability that the first class must reach to be named
    temperature: float = 1.0  # of the weighted mean of the streams' logits
    heads: Sequence[TrainedHead] = ()  # which make logits of some streams' features

    @property
    def makers(self) -> list[ClipMaker]:
        return [stream.maker for stream in self.streams]

    def __call__(self, video: Frames, rate: float = 25.0) -> Answer:
        """Name the action in a video: a path, or RGB uint8 frames (height, width, 3) at `rate` per second.

        Frames come as one array (frames, height, width, 3), as a list or from an iterator. Raises VideoError.
        """
        if isinstance(video, (str, Path)):
            return self.answer([clips_of_video(Path(video), self.makers)])[0]
        decoded = [maker.decoded("frames") for maker in self.makers]
        window = frames_in_memory(video, [one.short_side for one in decoded], rate)
        return self.answer([make_clips(window, self.makers, decoded)])[0]

    def answer_all(self, videos: Sequence[Path]) -> Iterator[Answer | str]:
        """Answer each of many videos, in their order, or say why it failed.

        Worker processes decode; the networks see the clips of several videos at once.
        """
        workers = min(cpu_count(), 16, len(videos))
        if len(videos) < FEW or any(maker.flow and maker.flow.on_gpu for maker in self.makers):
            workers = 0
        found: dict[int, Answer | str] = {}  # what is known before its turn
        waiting: dict[int, Clips] = {}
        per_batch = max(1, AT_ONCE[self.streams[0].device.type] // max(m.sampling.clips for m in self.makers))
        shown = 0
        with progress_bar(len(videos), "videos", "video", disable=len(videos) == 1) as bar:
            for place, clips in self._clips(videos, workers):
                if isinstance(clips, str):
                    found[place] = clips
                else:
                    waiting[place] = clips
                last = len(found) + len(waiting) + shown == len(videos)
                if len(waiting) == per_batch or (last and waiting):
                    found |= self._answered(waiting)
                    waiting = {}
                while shown in found:
                    bar.clear()
                    yield found.pop(shown)
                    shown += 1
                    bar.update()

    def _clips(self, videos: Sequence[Path], workers: int) -> Iterator[tuple[int, Clips | str]]:
        """(place, its clips or why there are none) of each video, as they get ready."""
        if not workers:
            for place, path in enumerate(videos):
                try:
                    yield place, clips_of_video(path, self.makers)
                except Exception as error:
                    if len(videos) == 1 and not isinstance(error, (VideoError, InputError)):
                        raise
                    yield place, reason(error)
            return
        makers = [replace(m, flow=m.flow and replace(m.flow, threads=1)) for m in self.makers]
        for place, event, value in run_jobs([functools.partial(_work, makers)] * workers, videos):
            if event == "result" and not isinstance(value, str):
                value = replace(value, batches={name: _received(batch) for name, batch in value.batches.items()})
            yield place, value

    def _answered(self, waiting: Mapping[int, Clips]) -> dict[int, Answer | str]:
        """Answers by place; one that fails costs no other."""
        try:
            return dict(zip(waiting, self.answer(list(waiting.values())), strict=True))
        except (InputError, VideoError) as error:
            if len(waiting) == 1:
                return dict.fromkeys(waiting, str(error))
            alone = [self._answered({place: clips}) for place, clips in waiting.items()]
            return {place: answer for one in alone for place, answer in one.items()}

    def answer(self, windows: Sequence[Clips]) -> list[Answer]:
        """What the streams say of each window. Raises InputError where their scores are not finite."""
        logits: list[dict[str, np.ndarray]] = [{} for _ in windows]
        for stream in self.streams:
            name = stream.maker.name
            able = [place for place, clips in enumerate(windows) if name in clips.batches]
            found = stream.logits([windows[place].batches[name] for place in able]) if able else []
            for place, own in zip(able, found, strict=True):
                logits[place][name] = own
        return [self._answer(clips, own) for clips, own in zip(windows, logits, strict=True)]

    def _answer(self, clips: Clips, logits: dict[str, np.ndarray]) -> Answer:
        times, samples = dict(clips.times), {name: len(own) for name, own in logits.items()}
        for head in self.heads:
            features = {name: logits.pop(name) for name in head.inputs if name in logits}
            middles = [times.pop(name) for name in features]
            counts = [samples.pop(name) for name in features]
            if len(features) < len(head.inputs):
                continue
            own = logits[head.name] = head.answer(features)
            times[head.name] = np.mean(middles if len(own) > 1 else [m.mean(keepdims=True) for m in middles], 0)
            samples[head.name] = max(counts)
        if not logits:
            raise VideoError(f"has too few frames: {'; '.join(clips.too_short)}")
        alone = f"{next(iter(logits))} stream alone: "
        notes = [(alone if len(logits) == 1 else "") + text for text in clips.too_short]
        answer = Answer(
            self.names, clips.start, clips.end, clips.frames, logits, times, samples,
            weighted(self.weights, list(logits)), self.temperature, self.unknown_below, tuple(notes),
        )  # fmt: skip
        if not all(np.isfinite(one).all() for one in (*logits.values(), answer.fused())):
            raise InputError("the scores are not finite: the checkpoint, or --fusion's file, is damaged or diverged")
        return answer


def weighted(weights: Mapping[str, float], streams: Sequence[str]) -> list[float]:
    """The weights of those streams that can see a video, 1 for one without; equal ones where they would all be 0."""
    chosen = [weights.get(name, 1.0) for name in streams]
    return chosen if sum(chosen) else [1.0] * len(chosen)
