"""Render a small dataset on which either stream alone must fail: 9 classes, 3 appearances times 3 motions.

A clip shows a moving painted sheet through a round window. The painted pattern (Dots, Stripes, Checks) is
visible in every single frame, but its two colours are equally bright: in grey images, from which optical flow
is computed, it is invisible. The motion of the sheet (Rise, Fall, Spin) is visible in the flow, but not in a
single frame. A mirrored motion is still the same motion.

Background, colours, window, scale, speed and start are drawn at random. Each scene is filmed three times from
the same first frame, once per motion. Names follow UCF101, v_StripesSpin_g01_c02.avi: videos of a group share
a background, and groups 1 to 7 are the test videos of split 1.

  python data/make_demo.py          only render the videos, into data/demo/videos
  python data/make_demo.py --run    then extract, train, test and fuse them, showing each command: minutes
"""

import functools
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.commandline import ArgumentParser, bounded
from common.formats import read_json
from common.progress import progress_bar
from data.jobs import run_jobs
from data.steps import Steps
from data.videos import import_cv2
from utils import InputError, atomic_path, cpu_count, run_main, write_json

APPEARANCES = ("Dots", "Stripes", "Checks")
MOTIONS = {"Rise": (0, 1), "Fall": (0, -1), "Spin": (1, 0)}  # whether the sheet turns; its way up
GROUPS = range(1, 26)  # as in UCF101, so that its group rule splits them
WIDTH, HEIGHT, FRAMES, RATE = 160, 120, 24, 25
SHEET = 512  # side of a sheet in its own pixels; it repeats without a seam
PERIOD = 64  # of the painted pattern, in pixels of the sheet


def film(seed: int, appearance: str, motion: str, group: int, clip: int) -> Iterator[np.ndarray]:
    """Yield the frames of one video, uint8 BGR (HEIGHT, WIDTH, 3).

    The videos of a group share the backdrop. Those of one appearance and clip differ only in the motion, and
    begin with the same frame. Lengths are in pixels of the video.
    """
    cv2 = import_cv2()
    rng = np.random.default_rng((seed, group, clip, APPEARANCES.index(appearance)))
    # A warm and a cold paint: with arbitrary hues, minutes of training don't suffice to learn the border.
    hues = rng.permutation([0.0, np.pi]) + rng.uniform(-0.7, 0.7, 2)
    paints = (128 + 50 * np.stack((np.cos(hues), np.sin(hues)), axis=1)).astype(np.float32)  # (2, 2), Cr Cb
    center = np.array([WIDTH, HEIGHT]) / 2 + rng.uniform((-24, -10), (24, 10))  # of the window, x and y
    radii = rng.uniform(42, 52, 2)  # of the window, x and y
    scale = rng.uniform(0.56, 0.7)  # pixels of the video per pixel of the sheet
    angle = rng.uniform(0, 2 * np.pi)  # of the sheet in the first frame
    start = rng.uniform(0, SHEET, 2)  # sheet pixel in the window's centre in the first frame
    speed = rng.uniform(4, 8)  # pixels per frame; for a spin, at the mean distance from the centre
    turns, rises = MOTIONS[motion]
    turns *= rng.choice((-1, 1))
    sheet, backdrop = draw_sheet(appearance, seed), draw_backdrop(seed, group)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1])
    window = np.clip((1 - radius) * np.mean(radii) / 2 + 0.5, 0, 1).astype(np.float32)[:, :, None]
    for frame in range(FRAMES):
        turned = angle - turns * frame * speed / (2 / 3 * np.mean(radii))
        linear = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]]) / scale
        offset = start - linear @ (center - (0, frame * speed * rises))
        pose = np.column_stack((linear, offset))  # (2, 3): from a video pixel (x, y, 1) to a sheet pixel
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(sheet, pose, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_WRAP)
        chroma = paints[0] + seen[:, :, 1:] * (paints[1] - paints[0])
        moving = np.concatenate((128 + seen[:, :, :1], chroma), axis=2)
        image = np.rint(backdrop * (1 - window) + window * moving).astype(np.uint8)
        yield cv2.cvtColor(image, cv2.COLOR_YCrCb2BGR)


def draw_backdrop(seed: int, group: int) -> np.ndarray:
    """Draw a group's still background, soft colours and a grain, as (HEIGHT, WIDTH, 3) float32, Y Cr Cb."""
    rng = np.random.default_rng((seed, group))
    grain = 18 * noise(rng, 256)
    tints = [128 + 14 * noise(rng, 256, steepness=3) + rng.uniform(-14, 14) for _ in "rb"]
    return np.stack([128 + grain, *tints], axis=2)[:HEIGHT, :WIDTH].astype(np.float32)


@functools.cache
def draw_sheet(appearance: str, seed: int) -> np.ndarray:
    """Draw the sheet: (SHEET, SHEET, 2) float32, the grain's brightness and the second paint's share, 0 to 1.

    In each appearance, both paints cover equal areas.
    """
    grain = np.clip(18 * noise(np.random.default_rng(seed), SHEET), -40, 40)
    y, x = (np.mgrid[:SHEET, :SHEET] % PERIOD) / PERIOD - 0.5
    edge = 1.5 / PERIOD  # half the width of a paint's soft edge
    distance = {  # from the pattern's edge, in periods, positive inside
        "Dots": np.sqrt(1 / (2 * np.pi)) - np.hypot(x, y),
        "Stripes": 0.25 - np.abs(x),
        "Checks": np.sign(x * y) * np.minimum.reduce([np.abs(x), np.abs(y), 0.5 - np.abs(x), 0.5 - np.abs(y)]),
    }[appearance]
    paint = np.clip(0.5 + distance / (2 * edge), 0, 1)
    return np.stack((grain, paint), axis=2).astype(np.float32)


def noise(rng: np.random.Generator, side: int, steepness: float = 1.0) -> np.ndarray:
    """Isotropic random (side, side) noise with mean 0 and standard deviation 1 that repeats without a seam.

    Its amplitude falls as 1 / frequency**steepness; photographs have a steepness of 1.
    """
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**steepness
    spectrum *= np.exp(-((frequency / 0.18) ** 2))  # nothing finer than a pixel of the video
    field = np.fft.irfft2(spectrum, (side, side))
    return field / field.std()


def video_path(videos: Path, appearance: str, motion: str, group: int, clip: int) -> Path:
    """The path Class/v_Class_gXX_cYY.avi, as in UCF101."""
    name = appearance + motion
    return videos / name / f"v_{name}_g{group:02d}_c{clip:02d}.avi"


def write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Write BGR frames as motion JPEG. OpenCV's own encoder gives the same bytes for the same frames."""
    cv2 = import_cv2()
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        avi = Path(folder) / "video.avi"  # the encoder needs this suffix
        codec = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(avi), cv2.CAP_OPENCV_MJPEG, codec, RATE, (WIDTH, HEIGHT))
        for frame in frames:
            writer.write(frame)
        writer.release()
        shutil.copyfile(avi, temporary)


def render_group(videos: Path, seed: int, clips: int, group: int) -> int:
    """Render a group's missing videos. Returns their number."""
    written = 0
    for appearance, clip, motion in itertools.product(APPEARANCES, range(1, clips + 1), MOTIONS):
        path = video_path(videos, appearance, motion, group, clip)
        if not path.exists():
            write_video(path, film(seed, appearance, motion, group, clip))
            written += 1
    return written


def render(out: Path, seed: int, clips: int) -> None:
    """Render the videos of all groups to `out`/videos, on all cores. Existing videos are kept."""
    settings = {"seed": seed, "width": WIDTH, "height": HEIGHT, "frames": FRAMES, "rate": RATE, "version": 1}
    made_by, anew = out / "demo.json", f"remove {out} or choose another"
    if made_by.exists() and read_json(made_by, dict[str, int], anew) != settings:
        raise InputError(f"{made_by} says that these videos were rendered otherwise; {anew}")
    write_json(made_by, settings)
    classes, written = len(APPEARANCES) * len(MOTIONS), 0
    total = len(GROUPS) * classes * clips
    workers = [functools.partial(render_group, out / "videos", seed, clips)] * cpu_count()
    with progress_bar(total, "render", " videos") as bar:
        for _, value in run_jobs(workers, GROUPS):
            if isinstance(value, str):
                raise RuntimeError(f"a process that rendered died: {value}")
            written += value
            bar.update(classes * clips)
    print(f"{total} videos in {classes} classes, {written} of them new -> {out / 'videos'}")


def run_all(out: Path, record: Path, seed: int, clips: int) -> None:
    """Run all steps. UCF101 needs the same steps; here network and images are small."""
    whole = out.resolve(), record.resolve()
    out, record = (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path for path in whole)
    videos, rgb, flow = out / "videos", out / "rgb", out / "flow"
    spatial, motion = record / "spatial", record / "motion"
    # Evaluate only after the last epoch, so that the test set doesn't select the reported checkpoint.
    training = (
        "--ucf-list none --arch resnet18 --weights none --size 56 --crop random --flip --consensus mean "
        f"--test-resize center --schedule cosine --epochs 6 --eval-every 6 --resume auto --seed {seed}"
    ).split()
    step = Steps(6, ROOT)
    step("videos", "data/make_demo.py", out, "--clips", clips, "--seed", seed)
    step("RGB frames", "data/extract_rgb.py", videos, rgb, "--short-side", 64, "--sampling-rate", 3)
    step("optical flow", "data/extract_flow.py", videos, flow, "--short-side", 64, "--method", "dis")
    step("spatial stream", "spatial_cnn.py", "--rgb-dir", rgb, "--output", spatial, *training,
         "--batch-size", 8, "--lr", 0.005)  # fmt: skip
    step("motion stream", "motion_cnn.py", "--flow-dir", flow, "--output", motion, *training,
         "--batch-size", 16, "--lr", 0.01, "--flow-mean", 0.5, "--flow-std", 0.226)  # fmt: skip
    step("fusion", "fusion.py", "--spatial", spatial, "--motion", motion, "--output", record / "fusion")
    print("\nNine classes are three appearances times three motions: a stream that sees only one of the two\nhas to "
          "guess the other, and is right one time in three. The figures differ by a few points from machine to "
          "machine. Run again, this does only what is missing.")  # fmt: skip


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/demo"), metavar="OUT",
                        help="folder to write to")
    parser.add_argument("--clips", type=bounded(int, 1, 99), default=3,
                        help="per class and group; each class has 25 groups")
    parser.add_argument("--seed", type=bounded(int, 0, 2**32 - 1), default=0, help="of everything random")
    parser.add_argument("--run", action="store_true", help="the whole job: also extract, train, test and fuse")
    parser.add_argument("--record", type=Path, default=Path("record/demo"), metavar="DIR",
                        help="with --run: what the streams write")
    args = parser.parse_args()
    if args.run:
        run_all(args.out, args.record, args.seed, args.clips)
    else:
        render(args.out, args.seed, args.clips)


if __name__ == "__main__":
    run_main(main)
