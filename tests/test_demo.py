"""The demo set: reproducible, split as UCF101 is, and each class needs both what is painted and how it moves."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from video_files import one_by_one

from data import make_demo
from data.videos import read_frames
from dataloader.lists import load_split
from utils import InputError

APPEARANCES = ("Checks", "Dots", "Stripes")
MOTIONS = ("Fall", "Rise", "Spin")
CLASSES = [a + m for a in APPEARANCES for m in MOTIONS]
FRAMES = 24


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The folder of a demo set of three groups with one clip per class."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_demo, "GROUPS", (1, 9, 17))
        patch.setattr(make_demo, "run_jobs", one_by_one)
        make_demo.render(folder, 0, 1)
    return folder


@pytest.fixture(scope="module")
def films(demo) -> dict[str, np.ndarray]:
    """The videos decoded: name -> (frames, height, width, 3) uint8 RGB."""
    return {path.stem: decode(path) for path in sorted(demo.rglob("*.avi"))}


def decode(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def parts(name: str) -> tuple[str, str, int, int]:
    """v_StripesSpin_g01_c02 -> ("Stripes", "Spin", 1, 2)."""
    match = re.fullmatch(r"v_([A-Z][a-z]+)([A-Z][a-z]+)_g(\d\d)_c(\d\d)", name)
    return match[1], match[2], int(match[3]), int(match[4])


def grey(frames: np.ndarray) -> np.ndarray:
    """What optical flow sees of RGB frames (BT.601), float32."""
    return (frames @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


# --- files ---------------------------------------------------------------------------------------------


def test_names_groups_frames_and_split(demo, films):
    paths = [make_demo.video_path(demo / "videos", a, m, group, 1)
             for a in make_demo.APPEARANCES for m in make_demo.MOTIONS for group in make_demo.GROUPS]  # fmt: skip
    wanted = {f"{c}/v_{c}_g{group:02d}_c01.avi" for c in CLASSES for group in range(1, 26)}
    assert {path.relative_to(demo / "videos").as_posix() for path in paths} == wanted
    assert {path for path in paths if parts(path.stem)[2] in (1, 9, 17)} == set(demo.rglob("*.avi"))
    split = load_split(None, 1, [path.stem for path in paths], verbose=False)
    assert split.class_names == CLASSES and (len(split.train), len(split.test)) == (9 * 18, 9 * 7)
    assert {parts(video.listed)[2] for video in split.test} == set(range(1, 8))
    assert {film.shape for film in films.values()} == {(FRAMES, 120, 160, 3)}


def test_rendered_again_only_what_is_missing_and_to_the_same_bytes(demo):
    lost, *kept = sorted(demo.rglob("*.avi"))
    before, times = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    assert make_demo.render_group(demo / "videos", 0, 1, parts(lost.stem)[2]) == 1
    assert lost.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_another_seed_is_another_set_and_another_folders(demo):
    one, two = (make_demo.draw_backdrop(seed, 1) for seed in (0, 1))
    assert not np.array_equal(one, two)
    assert not np.array_equal(make_demo.draw_sheet("Dots", 0), make_demo.draw_sheet("Dots", 1))
    with pytest.raises(InputError, match="remove .* or choose another"):
        make_demo.render(demo, 1, 1)


# --- what a video shows --------------------------------------------------------------------------------


def shift(images: list[np.ndarray], window: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """How far (x, y) the content moves from image to image by phase correlation, and the peak's height: medians."""
    found = [cv2.phaseCorrelate(a, b, window) for a, b in itertools.pairwise(images)]
    return np.median([moved for moved, _ in found], axis=0), float(np.median([peak for _, peak in found]))


def watch(film: np.ndarray) -> tuple[str, float]:
    """The motion in a film, without the renderer's help, and its speed: pixels, or a Spin's radians, per frame.

    A shift is a peak in the phase correlation of the frames, a turn one in that of their polar images.
    """
    images = grey(film)
    restless = cv2.GaussianBlur(np.abs(np.diff(images, axis=0)).mean(axis=0), (0, 0), 3)
    y, x = np.nonzero(restless > restless.max() / 3)
    middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    patches = [cv2.getRectSubPix(image, (48, 48), middle) for image in images]
    turns = [cv2.warpPolar(image, (24, 128), middle, 40, cv2.INTER_LINEAR)[:, 6:].copy() for image in images]
    (_, down), shifted = shift(patches, cv2.createHanningWindow((48, 48), cv2.CV_32F))
    (_, turned), spun = shift(turns)
    if spun > shifted:
        return "Spin", turned * 2 * np.pi / 128
    return ("Fall" if down > 0 else "Rise"), abs(down)


def test_motion_and_speed_are_the_promised_ones_and_survive_a_mirror(films):
    """4 to 8 pixels per frame; a Spin has that speed at two thirds of the window's radius, 42 to 52 pixels."""
    speeds, turns = [], []
    for name, film in films.items():
        motion, (seen, speed) = parts(name)[1], watch(film)
        assert seen == motion and watch(film[:, :, ::-1])[0] == motion, name
        (turns if motion == "Spin" else speeds).append(speed)
    radius = 2 / 3 * np.array([42, 52])
    for found, low, high in (speeds, 4, 8), (np.abs(turns), 4 / radius[1], 8 / radius[0]):
        assert 0.9 * low < min(found) < max(found) / 1.3 and max(found) < 1.1 * high
    assert min(turns) < 0 < max(turns)


def test_the_motions_of_a_scene_begin_with_the_same_frame(films):
    for appearance in APPEARANCES:
        for group in (1, 9, 17):
            first, *others = (films[f"v_{appearance}{motion}_g{group:02d}_c01"][0] for motion in MOTIONS)
            assert all(np.array_equal(first, other) for other in others)


def test_grey_images_do_not_show_what_is_painted(tmp_path, monkeypatch):
    sheets = [make_demo.draw_sheet(appearance, 0) for appearance in APPEARANCES]
    films = []
    for sheet in sheets:  # the same scene in everything but the paint
        monkeypatch.setattr(make_demo, "draw_sheet", lambda appearance, seed, sheet=sheet: sheet)
        make_demo.write_video(tmp_path / "film.avi", make_demo.film(0, "Dots", "Spin", 1, 1))
        films.append(decode(tmp_path / "film.avi"))
    for one, two in itertools.combinations(films, 2):
        assert np.abs(one.astype(float) - two).mean() > 8  # in colour
        assert np.abs(grey(one) - grey(two)).mean() < 1


# --- the whole job -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_neither_stream_alone_but_both_together(tmp_path):
    out, record = tmp_path / "demo", tmp_path / "record"
    command = [sys.executable, "data/make_demo.py", str(out), "--run", "--record", str(record)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for script in ("make_demo", "extract_rgb", "extract_flow", "spatial_cnn", "motion_cnn", "fusion"):
        assert re.search(rf"^\$ python \S*{script}\.py ", done.stdout, re.MULTILINE), script
    results = json.loads((record / "fusion/results.json").read_text())
    assert results["videos"] == 9 * 7 * 3
    assert max(results["spatial"]["top1"], results["motion"]["top1"]) < 60 and results["fusion"]["top1"] > 90
    assert "does better" not in done.stdout and "from machine to machine" in done.stdout  # no advice against itself

    weights = (record / "motion/checkpoint.pth.tar").read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "675 videos in 9 classes, 0 of them new" in again.stdout
    assert (record / "motion/checkpoint.pth.tar").read_bytes() == weights
    assert json.loads((record / "fusion/results.json").read_text())["fusion"] == results["fusion"]
