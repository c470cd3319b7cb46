"""Extract RGB frames from a folder of videos: OUT/<video>/frame000001.jpg, ...

<video> is the file's name without suffix for UCF101's names (v_Biking_g01_c04), else its path under VIDEOS
without suffix (fight/fi001). Frames are numbered from 1 without gaps, whatever the sampling rate.
You can kill it at any moment; start it again, and it continues with the unfinished videos.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.commandline import ArgumentParser, bounded
from data.extraction import add_arguments, extract_all, open_output
from data.videos import encode_jpeg, find_videos, read_frames
from utils import cpu_count, run_main


def write_rgb(short_side: int, quality: int, every: int, video: Path, folder: Path) -> int:
    """Write every `every`-th frame of `video` to `folder`/frame%06d.jpg. Returns the number of frames."""
    number = 0
    for number, frame in enumerate(read_frames(video, short_side, every), 1):
        (folder / f"frame{number:06d}.jpg").write_bytes(encode_jpeg(frame, quality))
    return number


def main() -> int:
    parser = ArgumentParser(__doc__)
    add_arguments(parser).add_argument("--sampling-rate", type=bounded(int, 1), default=10, metavar="N",
                                       help="keep frames 1, 1 + N, 1 + 2N, ...; 1 keeps every frame")  # fmt: skip
    args = parser.parse_args()
    videos = find_videos(args.videos, skip=args.out)
    settings = {"short_side": args.short_side, "quality": args.quality, "sampling_rate": args.sampling_rate}
    write = functools.partial(write_rgb, *settings.values())
    with open_output(args.out, "rgb", (".",), settings) as output:
        return extract_all(videos, output, [write] * (args.workers or cpu_count()), args.shard)


if __name__ == "__main__":
    run_main(main)
