"""The streams: trained networks and heads, how their clips are made, and their answer together."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from common.progress import progress_bar
from data.jobs import run_jobs
from data.videos import VideoError
from dataloader.clips import Batch, clips_of, each_once
from engine.evaluation import InferenceNet
from engine.temporal_heads import LinearHead
from recogniser.answers import Answer
from recogniser.decoded import ClipMaker, DecodedFrames
from recogniser.windows import Window, frames_in_memory, whole_video
from utils import InputError, cpu_count

FEW = 4  # fewer videos are decoded in this process, since starting workers takes seconds


# --- from frames to clips, in any process --------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """The networks' input for one window, from `start` to `end` seconds."""

    start: float
    end: float
    frames: int  # of the window
    batches: dict[str, Batch]  # by stream, for those that the window is long enough for
    times: dict[str, np.ndarray]  # stream -> (samples,) seconds: the middle of each clip
    too_short: Sequence[str]  # an explanation for each of the other streams


def make_clips(window: Window, decoded: Sequence[DecodedFrames]) -> Clips:
    """Make each stream's clips of a window. Raises VideoError if it is too short for every stream."""
    able = [one for one in decoded if window.count >= one.fewest]
    too_short = [f"the video {one.too_few(window.count)}" for one in decoded if one not in able]
    if not able:
        raise VideoError(min(decoded, key=lambda one: one.fewest).too_few(window.count))
    batches, times = {}, {}
    for one in able:
        name = one.maker.name
        batches[name] = one.clips(window.frames[one.short_side], window.count, window.first)
        times[name] = window.seconds(one.starts(window.count) + one.fewest / 2)
    return Clips(window.start, window.end, window.count, batches, times, too_short)


def clips_of_video(path: Path, makers: Sequence[ClipMaker]) -> Clips:
    """Decode a whole video and make each stream's clips of it."""
    decoded = [DecodedFrames(maker, path.name) for maker in makers]
    return make_clips(whole_video(path, decoded), decoded)


def _work(makers: Sequence[ClipMaker], path: Path) -> bytes | str:
    """Pickle the clips of one video, or say why there are none. This is the job of a worker process.

    Pickled here, tensors travel as bytes. A pipe would use shared memory for each; containers have little.
    """
    try:
        return pickle.dumps(clips_of_video(path, makers))
    except Exception as error:  # any error costs this video only
        return reason(error)


def reason(error: BaseException) -> str:
    """Say in one line why a video failed."""
    known = isinstance(error, (VideoError, InputError))
    return str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# --- networks and heads --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """A trained network, and how its clips are made."""

    net: InferenceNet
    maker: ClipMaker
    device: torch.device

    @torch.inference_mode()
    def logits(self, batch: Batch) -> np.ndarray:
        """Return (samples, classes) float32 of one video, averaged over views. Equal clips are computed once."""
        once, place = each_once(batch)
        clips = clips_of(once, self.maker.preparation.modality, self.device)
        at_once = 32 if self.device.type == "cpu" else 256
        logits = torch.cat([self.net(part)[0].float().cpu() for part in clips.split(at_once)])
        sampling = self.maker.sampling
        return logits[place].unflatten(0, (sampling.views, sampling.samples)).mean(0).numpy()


@dataclass(frozen=True)
class TrainedHead:
    """A head of heads.py on the features of some streams, which it uses in place of their last layers."""

    name: str  # the stream that it answers for, or the head's own name if it uses both streams
    head: nn.Module  # in evaluation mode, on the CPU
    inputs: Sequence[str]  # the streams, in the order in which their features are joined

    @torch.inference_mode()
    def answer(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the float32 logits of one video's features (samples, F) by input; their mean is the video's.

        A linear head returns (samples, classes), one row per sample; a head over time returns (1, classes).
        """
        # half() rounds the features as in training
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.inputs], 1)).half()
        if not isinstance(self.head, LinearHead):
            return self.head(joined[None].float()).numpy()
        weight, bias = self.head.fc.weight.double(), self.head.fc.bias.double()
        return nn.functional.linear(joined.double(), weight, bias).float().numpy()


# --- all together --------------------------------------------------------------------------------------

Frames: TypeAlias = str | Path | np.ndarray | Iterable[np.ndarray]


@dataclass(frozen=True)
class Recogniser:
    """All streams together. Call it with a video or with frames."""

    streams: list[Stream]
    names: list[str]  # of the classes, in label order
    weights: Mapping[str, float]  # of the streams
    temperature: float = 1.0  # of the weighted mean of the streams' logits
    heads: Sequence[TrainedHead] = ()  # they turn some streams' features into logits

    @property
    def makers(self) -> list[ClipMaker]:
        return [stream.maker for stream in self.streams]

    def decoded(self, video: str) -> list[DecodedFrames]:
        """Return the DecodedFrames of each stream for a video of this name."""
        return [DecodedFrames(maker, video) for maker in self.makers]

    def __call__(self, video: Frames, rate: float = 25.0) -> Answer:
        """Name the action in a video: a path, or RGB uint8 frames (height, width, 3) at `rate` per second.

        Frames come as one array (frames, height, width, 3), as a list or from an iterator. Raises VideoError.
        """
        if isinstance(video, (str, Path)):
            return self.answer(clips_of_video(Path(video), self.makers))
        decoded = self.decoded("frames")
        window = frames_in_memory(video, [one.short_side for one in decoded], rate)
        return self.answer(make_clips(window, decoded))

    def answer_all(self, videos: Sequence[Path]) -> Iterator[Answer | str]:
        """Yield the answer to each video in order, or why it failed. Worker processes decode."""
        found: dict[int, Answer | str] = {}  # results that arrived before their turn
        shown = 0
        with progress_bar(len(videos), "videos", "video", disable=len(videos) == 1) as bar:
            for place, clips in self._clips(videos):
                try:
                    found[place] = clips if isinstance(clips, str) else self.answer(clips)
                except (InputError, VideoError) as error:
                    found[place] = str(error)
                while shown in found:
                    bar.clear()
                    yield found.pop(shown)
                    shown += 1
                    bar.update()

    def _clips(self, videos: Sequence[Path]) -> Iterator[tuple[int, Clips | str]]:
        """Yield (index, clips or the reason why there are none) of each video, as they become ready."""
        if len(videos) < FEW or any(maker.flow and maker.flow.on_gpu for maker in self.makers):
            for place, path in enumerate(videos):
                try:
                    yield place, clips_of_video(path, self.makers)
                except Exception as error:
                    if len(videos) == 1 and not isinstance(error, (VideoError, InputError)):
                        raise
                    yield place, reason(error)
            return
        makers = [replace(m, flow=m.flow and replace(m.flow, threads=1)) for m in self.makers]
        workers = [functools.partial(_work, makers)] * min(cpu_count(), 16)
        for place, value in run_jobs(workers, videos):
            yield place, pickle.loads(value) if isinstance(value, bytes) else value

    def answer(self, clips: Clips) -> Answer:
        """Return the streams' answer to a window. Raises InputError if their scores are not finite."""
        streams = {stream.maker.name: stream for stream in self.streams}
        logits = {name: streams[name].logits(batch) for name, batch in clips.batches.items()}
        times, samples = dict(clips.times), {name: len(own) for name, own in logits.items()}
        for head in self.heads:
            features = {name: logits.pop(name) for name in head.inputs if name in logits}
            middles = [times.pop(name) for name in features]
            counts = [samples.pop(name) for name in features]
            if len(features) == len(head.inputs):
                own = logits[head.name] = head.answer(features)
                times[head.name] = np.mean(middles if len(own) > 1 else [m.mean(keepdims=True) for m in middles], 0)
                samples[head.name] = max(counts)
        if not logits:
            raise VideoError(f"has too few frames: {'; '.join(clips.too_short)}")
        alone = f"{next(iter(logits))} stream alone: "
        notes = [(alone if len(logits) == 1 else "") + text for text in clips.too_short]
        answer = Answer(
            self.names, clips.start, clips.end, clips.frames, logits, times, samples,
            weighted(self.weights, list(logits)), self.temperature, tuple(notes),
        )  # fmt: skip
        if not all(np.isfinite(one).all() for one in (*logits.values(), answer.fused())):
            raise InputError("the scores are not finite: the checkpoint, or --fusion's file, is damaged or diverged")
        return answer


def weighted(weights: Mapping[str, float], streams: Sequence[str]) -> list[float]:
    """Return the weights of these streams: 1 for a stream without one, and 1 for each if all would be 0."""
    chosen = [weights.get(name, 1.0) for name in streams]
    return chosen if sum(chosen) else [1.0] * len(chosen)
