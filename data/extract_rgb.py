"""Extract RGB frames from a folder of videos: OUT/<video>/frame000001.jpg, ...

<video> is the file's name without suffix for UCF101's names (v_Biking_g01_c04), else its path under VIDEOS
without suffix (fight/fi001). Frames are numbered from 1 without gaps, whatever the sampling rate.
Kill it at any moment and start it again: it goes on with the videos that aren't done.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser, bounded
from data.extraction import Reporter, add_arguments, extract_all, open_output
from data.jobs import Report
from data.videos import encode_jpeg, find_videos, import_cv2, read_frames
from utils import cpu_count, run_main


def write_rgb(short_side: int, quality: int, every: int, video: Path, folder: Path, report: Report) -> int:
    """Write every `every`-th frame of `video` as `folder`/frame%06d.jpg; returns how many."""
    written = Reporter(report)
    for frame in read_frames(video, short_side, every, claim=functools.partial(report, "claimed")):
        (folder / f"frame{written.count + 1:06d}.jpg").write_bytes(encode_jpeg(frame, quality))
        written.add()
    written.flush()
    return written.count


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    images = add_arguments(parser)
    images.add_argument(
        "--sampling-rate",
        type=bounded(int, 1),
        default=10,
        metavar="N",
        help="keep frames 1, 1 + N, 1 + 2N, ...; 1 keeps every frame",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    import_cv2()
    videos = find_videos(args.videos, skip=args.out)
    settings = {"short_side": args.short_side, "quality": args.quality, "sampling_rate": args.sampling_rate}
    write = functools.partial(write_rgb, args.short_side, args.quality, args.sampling_rate)
    with open_output(args.out, "rgb", (".",), settings, args.overwrite) as output:
        return extract_all(videos, output, lambda _: [write] * (args.workers or cpu_count()), args.shard)


if __name__ == "__main__":
    run_main(main)
