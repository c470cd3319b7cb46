"""Compute the features of videos for heads.py, straight from their files: no frame and no flow is written.

  python recogniser/video_features.py VIDEOS OUT     writes OUT/rgb.npz, greydiff.npz and flow.npz, and OUT/failed.csv
  python heads.py --spatial OUT/rgb.npz --motion OUT/greydiff.npz OUT/flow.npz --ucf-list LISTS

Each video is decoded once, by the code of predict.py, and only the frames that are sampled are converted. They
are scaled, JPEG-coded and read as if data/extract_rgb.py and data/extract_flow.py had written them. The features
depend on the video and the network alone, so they are kept when the split changes. If it was killed, start it
again: it continues with the videos that are left. Videos that can't be used are listed in failed.csv.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser, bounded
from common.formats import read_json
from common.progress import progress_bar
from data.extraction import write_reasons
from data.flow import PLAIN_METHODS
from data.videos import VideoFile, find_videos, stamp
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling
from engine.evaluation import PRE_LOGITS, InferenceNet
from engine.features import DEFAULT_POOLING, at_stack_middles, describe, kept_rows
from engine.owner import owned
from network import build_model, rgb_normalisation
from recogniser.clips import ClipMaker
from recogniser.streams import Stream, choose_flow, clips_of_videos
from saved.feature_file import write_features
from utils import InputError, amp_dtype, file_digest, plural, printable, run_main, set_up_device, write_json

# What is sampled of a video. A picture of flow has x, y and speed, as three planes that ImageNet's first convolution
# takes unchanged; so are three grey differences.
INPUTS = ("rgb", "greydiff", "flow")
PICTURE = 12.0  # pixels of flow that are white or black in a picture of it
CLASSES = 2  # of the networks' last layers, which are not used


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos, nested in any way")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    add = parser.add_argument_group("networks").add_argument
    add("--arch", default="resnet50", help="as in spatial_cnn.py -h")
    add("--weights", default="imagenet", metavar="imagenet|none|PATH", help="as in spatial_cnn.py -h")
    add = parser.add_argument_group("samples").add_argument
    add("--samples", nargs=2, type=bounded(int, 1), default=[5, 8], metavar=("RGB", "MOTION"),
        help="clips per video, spread evenly: of RGB, and each of grey differences and of flow")
    add("--views", type=int, choices=(1, 2), default=1, help="2: with mirror images, averaged")
    add("--sizes", nargs=2, type=bounded(int, 1, 4096), default=[160, 128], metavar=("RGB", "MOTION"),
        help="side of the networks' input, in pixels")
    add("--flow-method", choices=("tvl1", *PLAIN_METHODS), default="dis", help="as in data/extract_flow.py -h")
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=bounded(int, 0, 2**32 - 1), default=0, help="of --weights none")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto",
        help="mixed precision; auto: bf16 where the hardware has it")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    videos = find_videos(args.videos, skip=args.out)
    args.device = set_up_device(args.device)
    streams, abouts = zip(*(make_stream(name, args) for name in INPUTS), strict=True)
    reasons: dict[str, str] = {}
    with owned(args.out, flag="OUT"), contextlib.ExitStack() as stack:
        stores = [stack.enter_context(kept_rows(args.out / f"{name}.npz", about))
                  for name, about in zip(INPUTS, abouts, strict=True)]  # fmt: skip
        keys = digests(videos, args.out / "videos.json")
        todo = [video for video in videos if any(keys[video.name] not in rows for rows, _ in stores)]
        kept = f", {len(videos) - len(todo):,} of them there already" if len(todo) < len(videos) else ""
        print(f"features of {plural(len(videos), 'video')}{kept}: {args.arch} on {args.device.type} -> {args.out}",
              flush=True)  # fmt: skip
        with progress_bar(len(todo), "features", "video", disable=not todo) as bar:
            for place, clips in clips_of_videos([stream.maker for stream in streams], [one.path for one in todo]):
                video, key = todo[place], keys[todo[place].name]
                bar.update()
                if isinstance(clips, str):
                    reasons[video.name] = clips
                elif clips.too_short:
                    reasons[video.name] = clips.too_short[0].removeprefix("the video ")
                elif not (key and video.path.exists() and stamp(video.path) == (video.size, video.mtime_ns)):
                    reasons[video.name] = "changed while it was read: start again"
                else:
                    for stream, (rows, add) in zip(streams, stores, strict=True):
                        if key not in rows:
                            add(key, stream.logits(clips.batches[stream.maker.name]).astype(np.float16))
        used = [video for video in videos if video.name not in reasons]
        write_reasons(args.out / "failed.csv", reasons.items())
        if not used:
            raise InputError(f"none of the {plural(len(videos), 'video')} in {args.videos} can be used: "
                             f"{args.out / 'failed.csv'} has the reasons")  # fmt: skip
        files = {video.folder: os.path.abspath(video.path) for video in used}
        made_of = [keys[video.name] for video in used]
        for name, (rows, _), about in zip(INPUTS, stores, abouts, strict=True):
            values = np.stack([rows[key] for key in made_of])
            write_features(args.out / f"{name}.npz", list(files), (), (), values,
                           {**about, "files": files, "made_of": made_of})  # fmt: skip
    for name, reason in list(reasons.items())[:20]:
        print(printable(f"failed: {name}: {reason}"), file=sys.stderr)
    return 1 if reasons else 0


def make_stream(name: str, args: argparse.Namespace) -> tuple[Stream, dict[str, Any]]:
    """Return one input's network with its way of making clips, and what the features file says of both."""
    motion = name != "rgb"
    preparation = default_preparation(name, args.sizes[motion], "squash", 3 if name == "greydiff" else 1)
    made: dict[str, Any] = {"sampling_rate": 1, "short_side": 160, "quality": 90}
    if name == "flow":
        preparation = replace(preparation, picture=PICTURE)
        made = {"method": args.flow_method, "bound": 20.0, "short_side": 256, "quality": 90}
    if name != "greydiff":
        preparation = replace(preparation, **rgb_normalisation(args.arch))
    preparation = at_stack_middles(preparation.with_extraction(made))
    torch.manual_seed(args.seed)  # for random weights
    model = build_model(args.arch, preparation.channels, CLASSES, args.weights, size=preparation.size)
    pooling = DEFAULT_POOLING["motion" if motion else "spatial"] if model.stages else (PRE_LOGITS,)
    net = InferenceNet(model, preparation, amp_dtype(args.amp, args.device), pooling=pooling).to(args.device)
    sampling = TestSampling(args.samples[motion], args.views)
    flow = choose_flow(preparation, args, args.device) if name == "flow" else None
    about = describe(net, sampling, args.arch, model, "weights", args.weights, seed=args.seed, classes=CLASSES)
    return Stream(net, ClipMaker(name, preparation, sampling, flow), args.device), about


def digests(videos: Sequence[VideoFile], file: Path) -> dict[str, str]:
    """Return the SHA-256 of each video's bytes, the key of its features; "" for one that can't be read.

    `file` keeps {video: (size, time, SHA-256)}, so that a video is read again only if its size or time changed.
    """
    try:
        known = read_json(file, dict[str, tuple[int, int, str]], "")
    except InputError:
        known = {}
    found = {}
    with progress_bar(len(videos), "reading", "video") as bar:
        for video in videos:
            *before, sha256 = known.get(video.name, (0, 0, ""))
            if before != [video.size, video.mtime_ns] or not sha256:
                sha256 = ""
                with contextlib.suppress(OSError):  # decoding says why; opening a pipe would wait for a writer
                    sha256 = file_digest(video.path) if video.path.is_file() else ""
            found[video.name] = video.size, video.mtime_ns, sha256
            bar.update()
    write_json(file, found)
    return {name: sha256 for name, (*_, sha256) in found.items()}


if __name__ == "__main__":
    run_main(main)
