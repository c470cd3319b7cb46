"""The streams: trained networks and heads, loaded from checkpoints, and their answer together."""

import argparse
import functools
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.progress import progress_bar
from data.flow import PLAIN_METHODS, load_raft, raft_flow, raft_weights, tvl1_flow
from data.jobs import run_jobs
from data.videos import VideoError, decode, frame_rate
from dataloader.clips import Batch, clips_of
from dataloader.lists import load_split
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import Preparation
from engine.evaluation import InferenceNet, each_once, trained_model
from engine.temporal_heads import TEMPORAL, LinearHead, build_head
from recogniser import clips as windows
from recogniser.answers import Answer
from recogniser.clips import PAIRS_AT_ONCE, ClipMaker, Clips, Flow, make_clips
from saved.checkpoint_reader import Checkpoint, read_checkpoint
from saved.head_file import HeadFile, read_head
from utils import InputError, cpu_count

LOW = 10  # priority of workers: at most a tenth of a core that a network's thread wants
FEW = 4  # fewer videos are decoded in this process, since starting workers takes seconds
PER_SECOND = 2.5  # most clips per second of a window; more would share most of their frames


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

    def __call__(self, video: str | Path | np.ndarray | Iterable[np.ndarray], rate: float = 25.0) -> Answer:
        """Name the action in a video: a path, or RGB uint8 frames (height, width, 3) at `rate` per second.

        Frames come as one array (frames, height, width, 3), as a list or from an iterator. Raises VideoError.
        """
        if isinstance(video, (str, Path)):
            return self.answer(make_clips(windows.whole_video(Path(video), self.makers), self.makers))
        return self.answer(make_clips(windows.frames_in_memory(video, self.makers, rate), self.makers))

    def sliding(self, video: Path, seconds: float) -> Iterator[Answer]:
        """Yield an answer for each window of `seconds`, one every half window. Raises VideoError."""
        for window in windows.sliding_windows(decode(video), frame_rate(video), self.makers, seconds):
            yield self.answer(make_clips(window, self.makers))

    def watch(self, source: str, seconds: float) -> Iterator[Answer]:
        """Yield answers to a camera's latest seconds; windows that the networks are too slow for are left out."""
        camera = windows.Camera(source)
        for window in windows.sliding_windows(camera.frames(), camera.rate, self.makers, seconds):
            if camera.now() - window.times[-1] < max(1.0, seconds / 2):
                yield self.answer(make_clips(window, self.makers))

    def answer_all(self, videos: Sequence[Path]) -> Iterator[Answer | str]:
        """Yield the answer to each video in order, or why it failed. Worker processes decode."""
        found: dict[int, Answer | str] = {}  # results that arrived before their turn
        shown = 0
        with progress_bar(len(videos), "videos", "video", disable=len(videos) == 1) as bar:
            for place, clips in clips_of_videos(self.makers, videos):
                try:
                    found[place] = clips if isinstance(clips, str) else self.answer(clips)
                except VideoError as error:
                    found[place] = str(error)
                while shown in found:
                    bar.clear()
                    yield found.pop(shown)
                    shown += 1
                    bar.update()

    def answer(self, clips: Clips) -> Answer:
        """Return the streams' answer to a window. Raises VideoError if their scores are not finite."""
        streams = {stream.maker.name: stream for stream in self.streams}
        logits = {name: streams[name].logits(batch) for name, batch in clips.batches.items()}
        times, samples = dict(clips.times), {name: len(own) for name, own in logits.items()}
        for head in self.heads:
            features = {name: logits.pop(name) for name in head.inputs if name in logits}
            middles, counts = [times.pop(name) for name in features], [samples.pop(name) for name in features]
            if len(features) == len(head.inputs):
                own = logits[head.name] = head.answer(features)
                times[head.name] = np.mean(middles if len(own) > 1 else [m.mean(keepdims=True) for m in middles], 0)
                samples[head.name] = max(counts)
        if not logits:
            raise VideoError(f"has too few frames: {'; '.join(clips.too_short)}")
        alone = f"{next(iter(logits))} stream alone: "
        notes = [(alone if len(logits) == 1 else "") + text for text in clips.too_short]
        answer = Answer(self.names, clips.start, clips.end, clips.frames, logits, times, samples,
                        weighted(self.weights, list(logits)), self.temperature, tuple(notes))  # fmt: skip
        if not all(np.isfinite(one).all() for one in (*logits.values(), answer.fused())):
            raise VideoError("its scores are not finite: the checkpoint, or --fusion's file, is damaged or diverged")
        return answer


def weighted(weights: Mapping[str, float], streams: Sequence[str]) -> list[float]:
    """Return the weights of these streams: 1 for a stream without one, and 1 for each if all would be 0."""
    chosen = [weights.get(name, 1.0) for name in streams]
    return chosen if sum(chosen) else [1.0] * len(chosen)


def clips_of_videos(makers: Sequence[ClipMaker], videos: Sequence[Path]) -> Iterator[tuple[int, Clips | str]]:
    """Yield (index, clips or the reason why there are none) of each video, as worker processes finish them."""
    if len(videos) < FEW or any(maker.flow and maker.flow.on_gpu for maker in makers):
        yield from ((place, _clips_or_reason(makers, path)) for place, path in enumerate(videos))
        return
    makers = [replace(maker, flow=maker.flow and replace(maker.flow, threads=1)) for maker in makers]
    workers = [functools.partial(_work, makers)] * min(cpu_count(), 16)
    for place, value in run_jobs(workers, videos):
        yield place, pickle.loads(value) if isinstance(value, bytes) else value


def _clips_or_reason(makers: Sequence[ClipMaker], path: Path) -> Clips | str:
    """Return the clips of one video, or why there are none: any error costs this video only."""
    try:
        return make_clips(windows.whole_video(path, makers), makers)
    except (VideoError, InputError, OSError) as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"internal error: {type(error).__name__}"


def _work(makers: Sequence[ClipMaker], path: Path) -> bytes:
    """Do this in a worker process. Pickled here, tensors travel without shared memory: containers have little."""
    if hasattr(os, "nice") and os.nice(0) < LOW:  # decode while the networks' threads leave time: a sixth faster
        os.nice(LOW)
    return pickle.dumps(_clips_or_reason(makers, path))


def load_streams(
    paths: Mapping[str, str], args: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> tuple[list[Stream], list[str], list[TrainedHead]]:
    """Load {"spatial": path, "motion": path, "head": path}. Return the streams, class names, and heads.

    `args` are predict.py's flags. Those that have no effect on these networks are noted on stderr.
    """
    checkpoints: dict[str, Checkpoint] = {}
    heads: list[TrainedHead] = []
    pooling: dict[str, Sequence[str]] = {}
    for name, path in paths.items():
        if file := read_head(path):
            belongs = "head" if file.stream == "both" else file.stream
            heads.append(load_head(file))
            checkpoints |= file.inputs
            pooling |= file.pooling
        else:
            read = read_checkpoint(path, flow_order=args.flow_order or "original")
            belongs = "spatial" if read.preparation["modality"] == "rgb" else "motion"
            checkpoints[belongs] = read
        if name != belongs:
            raise InputError(f"--{name} {path} is a network of the {belongs} stream: pass it to --{belongs}")
    names = choose_class_names(list(checkpoints.values()), args.ucf_list)
    streams = []
    for name, read in checkpoints.items():
        preparation = Preparation.from_dict(read.preparation)
        samples = read.sampling.samples
        if args.sliding:
            samples = min(samples, max(5, round(PER_SECOND * args.sliding)))
        sampling = replace(read.sampling, samples=args.samples or samples)
        flow = choose_flow(preparation, args, device) if preparation.modality == "flow" else None
        model = trained_model(read.in_order_of(names))
        net = InferenceNet(model, preparation, dtype, pooling=pooling.get(name, ())).to(device)
        streams.append(Stream(net, ClipMaker(name, preparation, sampling, flow), device))
    flows = [stream.maker.flow.name for stream in streams if stream.maker.flow]
    note_unused(
        args, flow_method=bool(flows), raft_weights=any(name.startswith("raft") for name in flows),
        flow_order=any(one.source == "original" and one.in_channels == 20 for one in checkpoints.values()),
        ucf_list=all(one.class_names is None for one in checkpoints.values()),
    )  # fmt: skip
    return streams, names, heads


def note_unused(args: argparse.Namespace, **used: bool) -> None:
    """Note on stderr which of these flags were given but have no effect."""
    unused = [f"--{name.replace('_', '-')}" for name, is_used in used.items() if getattr(args, name) and not is_used]
    if unused:
        note(f"without effect here: {', '.join(unused)}")


def load_head(file: HeadFile) -> TrainedHead:
    """Build the head of a file. Raises InputError if this version does not know its kind or it is damaged."""
    if file.kind not in ("linear", *TEMPORAL):
        raise InputError(f"{file.path} is a head of a kind {file.kind}, which this version does not know; update it")
    head = build_head(file.kind, file.features, len(file.class_names))
    try:
        head.load_state_dict(file.state_dict)
    except RuntimeError:
        raise InputError(f"{file.path} is a damaged head, its weights do not fit {file.kind}: train it again") from None
    return TrainedHead(file.kind if file.stream == "both" else file.stream, head.eval(), list(file.inputs))


def choose_class_names(checkpoints: Sequence[Checkpoint], lists: str | None) -> list[str]:
    """Return the classes in label order: the checkpoints' own, --ucf-list's, UCF101's if there are 101, or numbers.

    Raises InputError if the checkpoints differ in their classes.
    """
    first = next((one for one in checkpoints if one.class_names is not None), checkpoints[0])
    source, names, count = str(first.path), first.class_names, first.num_classes
    if names is None and lists:
        source, names = lists, load_split(lists, 1).class_names
    elif names is None and count == len(UCF101_CLASSES):
        names = list(UCF101_CLASSES)
    elif names is None:
        note(f"{source} does not name its {count} classes, so they are numbered; --ucf-list DIR names them")
        names = [f"class {label}" for label in range(count)]
    for one in checkpoints:
        own = names if one.class_names is None else one.class_names
        if one.num_classes != len(names) or [n.casefold() for n in own] != [n.casefold() for n in names]:
            raise InputError(f"{source} and {one.path} differ in classes or their order: pass streams of one dataset")
    return names


def choose_flow(preparation: Preparation, args: argparse.Namespace, device: torch.device) -> Flow:
    """Return --flow-method, by default the method that the network was trained on."""
    trained = preparation.flow_method or ""
    name = args.flow_method or trained or "tvl1"
    if not trained.startswith(name):
        note(f"the motion stream was trained on {trained or 'unknown'} flow, this is {name}; see --flow-method")
    if name.startswith("raft"):
        file = raft_weights(args.raft_weights or ("small" if trained == "raft_small" else "large"))
        load_raft(file)  # a wrong file is reported now
        raft = functools.partial(raft_flow, weights=file, device=str(device), batch_frames=PAIRS_AT_ONCE)
        return Flow(raft, on_gpu=device.type != "cpu", name=name)
    on_gpu = name == "tvl1" and device.type == "cuda"
    tvl1 = functools.partial(tvl1_flow, device=str(device) if on_gpu else "cpu")
    methods: dict[str, Callable] = {"tvl1": tvl1, **PLAIN_METHODS}
    if name not in methods:  # by another version
        raise InputError(f"the motion stream was trained on {name} flow of unknown origin: pass --flow-method")
    return Flow(methods[name], 1 if on_gpu else cpu_count(), on_gpu, name)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
