"""The streams that answer: trained networks, how their input is made, and their vote over a window's clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.videos import VideoError
from dataloader.clips import Batch, TestSampling, clips_of, each_once
from dataloader.preparation import Preparation
from network import InferenceNet
from recogniser.answers import Answer
from recogniser.decoded import DecodedFrames, Flow
from recogniser.vote import ROUND, is_decided, spread_order, weighted
from recogniser.windows import Window
from utils import plural


@dataclass(frozen=True)
class Stream:
    """A trained network, and how its input is made."""

    name: str  # spatial or motion
    net: InferenceNet
    preparation: Preparation
    sampling: TestSampling
    flow: Flow | None
    device: torch.device

    @torch.inference_mode()
    def logits(self, batch: Batch) -> np.ndarray:
        """(samples, classes) float32 of one video's clips, averaged over views. Equal clips are computed once."""
        batch, place = each_once(batch)
        size = 256 if self.device.type == "cuda" else 8
        parts = list(zip(batch.clips.split(size), batch.flip.split(size), strict=True))
        outputs = []
        for rows, flip in tqdm(parts, desc=f"{self.name} network", leave=False, delay=1, disable=None):
            clips = batch._replace(clips=rows, flip=flip)
            outputs.append(self.net(clips_of(clips, self.preparation.modality, self.device))[0].cpu())
        logits = torch.cat(outputs)[place]  # (different clips, classes) to (views * samples, classes)
        return logits.unflatten(0, (self.sampling.views, self.sampling.samples)).mean(0).numpy()

    @torch.inference_mode()
    def logits_of_some(self, batches: Sequence[Batch]) -> np.ndarray:
        """(batches, classes) float32 of batches of one clip each, averaged over views."""
        clips = torch.cat([clips_of(batch, self.preparation.modality, self.device) for batch in batches])
        return self.net(clips)[0].cpu().unflatten(0, (len(batches), -1)).mean(1).numpy()


@dataclass(frozen=True)
class TrainedHead:
    """A head of heads.py on the features of some streams, whose last layer is no part of them."""

    name: str  # of what it answers: a stream's, or the head's own where it sees both
    head: nn.Module  # in evaluation mode, on the CPU
    inputs: Sequence[str]  # the streams, in the order in which their features are joined

    @torch.inference_mode()
    def answer(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """One video's features (samples, F) by input -> its logits (1, classes) float32."""
        joined = torch.from_numpy(np.concatenate([features[name] for name in self.inputs], 1))
        return self.head(joined[None].half().float()).numpy()  # rounded as those it was trained on


@dataclass(frozen=True)
class Recogniser:
    """All streams together."""

    streams: list[Stream]
    names: list[str]  # of the classes, in label order
    weights: Mapping[str, float]  # of the streams
    unknown_below: float = 0.0  # probability that the first class must reach to be named
    stop_early: bool = False  # leave out clips that can hardly change the answer
    temperature: float = 1.0  # of the weighted mean of the streams' logits
    heads: Sequence[TrainedHead] = ()  # which make logits of some streams' features

    def frames_of(self, video: str) -> list[DecodedFrames]:
        """The makers of each stream's clips of one video."""
        return [DecodedFrames(video, one.preparation, one.sampling, one.flow) for one in self.streams]

    def answer(self, window: Window, decoded: Sequence[DecodedFrames]) -> Answer:
        """What the streams say of one window. One that needs more frames than there are is left out and named.

        Raises VideoError where there are too few for any stream.
        """
        pairs = [(s, d) for s, d in zip(self.streams, decoded, strict=True) if window.count >= d.fewest]
        if not pairs:
            fewest = min(decoded, key=lambda one: one.fewest)
            raise VideoError(fewest.too_few(window.count))
        notes = [
            f"{pairs[0][0].name} stream alone: {plural(window.count, 'frame')} are too few for the {stream.name} "
            f"stream, which needs {one.fewest}"
            for stream, one in zip(self.streams, decoded, strict=True)
            if window.count < one.fewest
        ]
        if self.stop_early and not self.heads:
            logits, places = _vote(window, pairs, weighted(self.weights, [stream.name for stream, _ in pairs]))
            computed, planned = len(logits[0]), pairs[0][0].sampling.samples
            if computed < planned:
                notes.append(f"decided after {computed} of {planned} clips")
        else:
            logits = [s.logits(d.clips(window.frames[d.short_side], window.count, window.first)) for s, d in pairs]
            places = [list(range(len(own))) for own in logits]
        named = {stream.name: own for (stream, _), own in zip(pairs, logits, strict=True)}
        times = {
            stream.name: window.start + (one.starts(window.count)[own] + one.fewest / 2) / window.rate
            for (stream, one), own in zip(pairs, places, strict=True)
        }
        for head in self.heads:
            features = {name: named.pop(name) for name in head.inputs if name in named}
            middle = [times.pop(name).mean() for name in features]
            if len(features) == len(head.inputs):
                named[head.name], times[head.name] = head.answer(features), np.mean(middle, keepdims=True)
        if not named:
            raise VideoError(max(decoded, key=lambda one: one.fewest).too_few(window.count))
        return Answer(
            self.names, window.start, window.end, window.count, named, times, weighted(self.weights, list(named)),
            self.temperature, self.unknown_below, tuple(notes),
        )  # fmt: skip


def _vote(
    window: Window, pairs: Sequence[tuple[Stream, DecodedFrames]], weights: Sequence[float]
) -> tuple[list[np.ndarray], list[list[int]]]:
    """Each stream's logits (clips, classes) of as many clips as decide, in time order, and which these are."""
    planned = [stream.sampling.samples for stream, _ in pairs]
    orders = [spread_order(samples) for samples in planned]
    logits = [np.empty((0, 0), np.float32)] * len(pairs)
    for begin in range(0, max(planned), ROUND):
        for index, (stream, one) in enumerate(pairs):
            places = orders[index][begin : begin + ROUND]
            if places:
                frames = window.frames[one.short_side]
                new = stream.logits_of_some([one.clip(frames, window.count, place, window.first) for place in places])
                logits[index] = np.concatenate([logits[index], new]) if begin else new
        if is_decided(logits, planned, weights):
            break
    computed = [np.array(order[: len(own)]) for order, own in zip(orders, logits, strict=True)]
    sorts = [np.argsort(own) for own in computed]
    in_time = [own[sort] for own, sort in zip(logits, sorts, strict=True)]
    return in_time, [own[sort].tolist() for own, sort in zip(computed, sorts, strict=True)]
