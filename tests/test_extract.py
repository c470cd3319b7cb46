"""Extraction of frames: counts, layout, killing and resuming, shards, broken videos, bad input."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from video_files import extract, make_video, number_of, write_film

from data import extract_rgb
from data.jobs import run_jobs
from data.videos import VideoError, find_videos, read_frames
from dataloader.extracted import fingerprint
from dataloader.frames import Frames
from utils import InputError

FAST = {
    "rgb": ("--short-side", "48", "--workers", "1", "--sampling-rate", "1"),
    "flow": ("--short-side", "48", "--workers", "1", "--method", "dis"),
}


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too, and its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def count_files(root: Path) -> int:
    """How many files lie below `root` while others write and delete there."""
    return sum(len(files) for _, _, files in os.walk(root))


def images(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failures(out: Path) -> dict[str, str]:
    with open(out / "failed.csv", newline="") as file:
        return {row["video"]: row["reason"] for row in csv.DictReader(file)}


def command(kind: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / f"data/extract_{kind}.py"), *map(str, arguments), *FAST[kind]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Six videos of two classes with UCF101 names."""
    root = tmp_path_factory.mktemp("videos")
    for clip in (1, 2, 3):
        make_video(root / "Biking" / f"v_Biking_g01_c0{clip}.avi", clip, 11 + clip)
        make_video(root / "Diving" / f"v_Diving_g01_c0{clip}.avi", clip, 29 + clip)
    return root


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What each script writes for `videos` when nobody disturbs it."""
    root = tmp_path_factory.mktemp("whole")
    for kind in FAST:
        extract(kind, videos, root / kind, *FAST[kind])
    return {kind: tree(root / kind) for kind in FAST}


# --- what is written -----------------------------------------------------------------------------------


def test_decoded_counts_are_those_of_the_manifest(shared, tmp_path):
    clips = shared / "data" / "ucf101_clips"
    extract("rgb", clips / "HammerThrow", tmp_path, "--sampling-rate", "1", "--short-side", "32")
    with open(clips / "MANIFEST.csv", newline="") as file:
        expected = {row["name"].removesuffix(".avi"): int(row["frames"]) for row in csv.DictReader(file)}
    found = {folder.name: images(folder) for folder in tmp_path.iterdir() if folder.name.startswith("v_")}
    assert found.keys() == {path.stem for path in (clips / "HammerThrow").glob("*.avi")}
    for name, names in found.items():
        assert names == [f"frame{k:06d}.jpg" for k in range(1, expected[name] + 1)]


def test_sampling_keeps_every_nth_frame_and_numbers_without_gaps(tmp_path):
    write_film(tmp_path / "videos" / "v_Biking_g01_c01.avi", frames=23)
    extract("rgb", tmp_path / "videos", tmp_path / "out")
    folder = tmp_path / "out" / "v_Biking_g01_c01"
    assert images(folder) == ["frame000001.jpg", "frame000002.jpg", "frame000003.jpg"]
    found = [np.asarray(Image.open(folder / name)) for name in images(folder)]
    assert found[0].shape == (256, 313, 3) and [number_of(image) for image in found] == [0, 10, 20]
    settings = {"short_side": 256, "quality": 90, "sampling_rate": 10}
    made = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert made == {"kind": "rgb", "version": 1, "settings": settings}


def test_other_names_keep_their_folders(tmp_path):
    root, names = tmp_path / "videos", ("fight/fi001", "fight/deep/er/x", "no fight/a.b", "no fight/ü", "m")
    for name in names:
        make_video(root / f"{name}.avi", 0, 4)
    make_video(root / "._hidden.avi", 0, 4)
    extract("rgb", root, root / "out", *FAST["rgb"])
    assert all(len(images(root / "out" / name)) == 4 for name in names)
    assert len(list((root / "out").rglob("*.jpg"))) == 4 * len(names)


def test_frames_are_streamed(tmp_path):
    """Decoding starts with the first frame asked for and goes no further than the last one."""
    path = make_video(tmp_path / "a.avi", 0, 30)
    cut(path, 0.6)
    frames = read_frames(path)
    for _ in range(5):
        assert next(frames).shape == (96, 128, 3)  # the cut is not noticed before it is reached
    with pytest.raises(VideoError, match="cut off"):
        list(frames)


def test_its_processes_do_without_torch():
    """A worker that imports torch costs two seconds and 400 MB more, on each core."""
    code = "import sys, data.extract_rgb, data.extract_flow, data.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- killed, started again, shared -----------------------------------------------------------------------


def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(videos, whole, tmp_path):
    out, half_done = tmp_path / "out", 0
    for share in (0.2, 0.6):
        process = subprocess.Popen(command("flow", videos, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and count_files(out) < share * len(whole["flow"]):
            time.sleep(0.002)
        process.kill()  # SIGKILL
        process.wait()
        half_done += count_files(out) > 0 and count_files(out / ".done") < 6
    assert half_done
    extract("flow", videos, out, *FAST["flow"])
    assert tree(out) == whole["flow"]
    assert "nothing left to do" in extract("flow", videos, out, *FAST["flow"])
    assert tree(out) == whole["flow"]


def test_what_a_kill_between_two_renames_leaves_is_redone(videos, whole, tmp_path):
    out = tmp_path / "out"
    extract("flow", videos, out, *FAST["flow"])
    done = {name: out / ".done" / f"v_Biking_g01_c0{name}.json" for name in (1, 2)}
    done[1].unlink()
    (out / "u" / "v_Biking_g01_c01" / "frame000003.jpg").write_bytes(b"half")  # u moved, v not, no marker
    for path in (out / "v" / "v_Biking_g01_c01").iterdir():
        path.unlink()
    (out / "v" / "v_Biking_g01_c01").rmdir()
    done[2].write_text("{")  # a marker cut in half by a power failure
    (out / ".partial" / "dead" / "x" / "u").mkdir(parents=True)
    (out / ".partial" / "dead.lock").touch()
    extract("flow", videos, out, *FAST["flow"])
    assert tree(out) == whole["flow"]
    assert not (out / ".partial").exists()


def write_on(path: str) -> None:
    """Write a byte every 10 ms, for at most 30 s."""
    for _ in range(3000):
        with open(path, "ab") as file:
            file.write(b"x")
        time.sleep(0.01)


def test_workers_die_with_a_killed_parent(tmp_path):
    """The workers of a killed run write no further, so that a new run isn't disturbed."""
    logs = [tmp_path / "a", tmp_path / "b"]
    folders, names = [str(ROOT), str(ROOT / "tests")], [str(log) for log in logs]
    code = f"import sys; sys.path[:0] = {folders}\nfrom test_extract import run_jobs, write_on\n" \
           f"list(run_jobs([write_on, write_on], {names}))"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code])
    while not all(log.exists() and log.stat().st_size for log in logs):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(1)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(0.5)
    assert [log.stat().st_size for log in logs] == sizes


def test_shards_and_the_same_work_started_at_once_make_the_whole(videos, whole, tmp_path):
    shards = [[*command("rgb", videos, tmp_path / "out"), "--shard", f"{k}/2"] for k in (1, 2, 2)]
    processes = [subprocess.Popen(shard, stdout=subprocess.PIPE, text=True) for shard in shards]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all("3 videos of 6 (shard " in output for output in outputs)
    assert tree(tmp_path / "out") == whole["rgb"]


def test_machines_that_start_at_once_with_different_settings_do_not_mix(videos, tmp_path):
    out, sides = tmp_path / "out", ("32", "40")
    both = [[*command("rgb", videos, out), "--short-side", side] for side in sides]
    processes = [subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for one in both]
    codes = [process.wait() for process in processes]
    winner = json.loads((out / "extraction.json").read_text())["settings"]["short_side"]
    assert codes == [0 if side == str(winner) else 2 for side in sides]
    assert {Image.open(path).height for path in out.rglob("*.jpg")} == {winner}


def die_on_two(job: int) -> int:
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 5:
        raise InputError("the disk is full")
    return job * job


def test_a_process_that_dies_costs_only_its_own_job_and_what_no_job_survives_is_raised():
    found = dict(run_jobs([die_on_two, die_on_two], [0, 1, 2, 3, 4]))
    assert "SIGKILL" in found.pop(2)
    assert found == {0: 0, 1: 1, 3: 9, 4: 16}
    with pytest.raises(InputError, match="the disk is full"):
        list(run_jobs([die_on_two], [5, 1]))


# --- other settings, other files ---------------------------------------------------------------------------


def test_other_settings_and_folders_of_something_else_are_refused(videos, tmp_path):
    out = tmp_path / "out"
    extract("rgb", videos, out, *FAST["rgb"])
    before = tree(out)
    assert "short_side 48 there, 32 asked" in extract("rgb", videos, out, *FAST["rgb"], "--short-side", "32", code=2)
    assert "holds rgb, not flow" in extract("flow", videos, out, *FAST["flow"], code=2)
    assert tree(out) == before
    assert "did not extract" in extract("rgb", videos, tmp_path, code=2)
    assert images(tmp_path) == ["out"]


def test_a_video_is_another_by_its_content_not_its_time_and_is_extracted_again(tmp_path):
    """What was extracted is kept under the content of its file, and so is what others compute from it."""
    path = make_video(tmp_path / "videos" / "a.avi", 0, 12)
    arguments = ("rgb", tmp_path / "videos", tmp_path / "out", *FAST["rgb"])

    def key() -> str:
        return fingerprint(tmp_path / "out", Frames("a", "frame", 6, 1, 2, ".jpg"))

    extract(*arguments)
    before = key(), tree(tmp_path / "out" / "a")
    os.utime(path, (1, 1))  # a copy
    assert "nothing left to do" in extract(*arguments)
    assert (key(), tree(tmp_path / "out" / "a")) == before
    data = bytearray(path.read_bytes())
    data[data.index(b"movi") + 12 + 700] ^= 1  # in the first frame
    path.write_bytes(data)
    assert "1 to do" in extract(*arguments)
    assert key() != before[0]
    make_video(path, 0, 15)
    extract(*arguments)
    assert len(images(tmp_path / "out" / "a")) == 15
    path.write_text("no video any more")
    extract(*arguments, code=1)
    assert not (tmp_path / "out" / "a").exists()  # no frames of a video that has failed
    assert list((tmp_path / "out" / ".done").iterdir()) == []


def test_images_of_others_are_told_apart_by_their_files(tmp_path):
    (tmp_path / "a").mkdir()
    for number in (1, 2):
        (tmp_path / "a" / f"img_{number:05d}.jpg").write_bytes(b"image")
    frames = Frames("a", "img_", 5, 1, 2, ".jpg")
    before = fingerprint(tmp_path, frames)
    assert fingerprint(tmp_path, frames) == before
    os.utime(tmp_path / "a" / "img_00002.jpg", (1, 1))
    assert fingerprint(tmp_path, frames) != before


# --- broken videos and bad input ----------------------------------------------------------------------------


def test_broken_videos_are_listed_and_the_others_done(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for name in ("good", "cut", "whole/later"):
        make_video(root / f"{name}.avi", 0, 40)
    cut(root / "cut.avi", 0.5)
    (root / "empty.mp4").touch()
    (root / "text.mkv").write_text("this is no video")
    (root / "link.avi").symlink_to(root / "nowhere")
    (root / "far.avi").symlink_to("n" * 300)  # longer than any name: it cannot even be looked for
    arguments = ("rgb", root, out, *FAST["rgb"])
    said = "".join(extract(*arguments, "--shard", shard, code=1) for shard in ("1/2", "2/2"))
    assert len(images(out / "good")) == len(images(out / "whole" / "later")) == 40
    assert not (out / "cut").exists()
    reasons = failures(out)
    assert sorted(reasons) == ["cut.avi", "empty.mp4", "far.avi", "link.avi", "text.mkv"]
    assert "cut off or damaged: " in reasons["cut.avi"]
    assert "empty" in reasons["empty.mp4"]
    assert all(f"{name}: {reason}" in said for name, reason in reasons.items())
    assert "Traceback" not in said

    make_video(root / "cut.avi", 0, 40)  # one is put right, two are removed
    (root / "empty.mp4").unlink()
    (root / "link.avi").unlink()
    (root / "far.avi").unlink()
    extract(*arguments, code=1)
    assert list(failures(out)) == ["text.mkv"]
    (root / "text.mkv").unlink()
    extract(*arguments)
    assert not (out / "failed.csv").exists()
    assert len(images(out / "cut")) == 40


def test_a_single_frame_has_no_flow(tmp_path):
    for frames, name in enumerate("ab", 1):
        make_video(tmp_path / f"videos/{name}.avi", 0, frames)
    extract("flow", tmp_path / "videos", tmp_path / "out", *FAST["flow"], code=1)
    assert "single frame" in failures(tmp_path / "out")["a.avi"]
    assert images(tmp_path / "out/u") == ["b"] and len(images(tmp_path / "out/v/b")) == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("CUDA out of memory"), 1, "not enough memory"), (KeyError(1), 1, "internal error"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "cannot write to"),
    ],
)  # fmt: skip
def test_what_ends_one_video_and_what_ends_all(videos, monkeypatch, tmp_path, error, code, words):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(extract_rgb, "write_rgb", fail)
    said = extract("rgb", videos, tmp_path / "out", code=code)
    assert said.count(words) == (6 if code == 1 else 1) and ("Traceback" in said) == isinstance(error, KeyError)


def test_bad_input_is_one_line(videos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for kind, arguments, message in (
        ("rgb", [tmp_path / "missing", out], "missing is no folder"),
        ("rgb", [tmp_path / "empty", out], "empty holds no video"),
        ("rgb", [videos, tmp_path / "file"], "cannot write to"),
        ("rgb", [videos, out, "--quality", "0"], "--quality: must be from 1 to 100, not 0"),
        ("rgb", [videos, out, "--shard", "5/4"], "give K/N with K from 1 to N"),
        ("rgb", [videos, out, "--shard", "1"], "give K/N with K from 1 to N"),
        ("flow", [videos, out, "--bound", "0"], "--bound: must be from 0.01 to 10000.0, not 0"),
        ("flow", [videos, out, "--batch-frames", "0"], "--batch-frames: must be at least 1, not 0"),
        ("flow", [videos, out, "--device", "cuda"], "--device cuda"),
    ):
        assert message in extract(kind, *arguments, code=2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("one", "two"), [("p/v_Biking_g01_c01.avi", "q/v_Biking_g01_c01.avi"), ("p/X.avi", "p/x.mp4"), ("p.avi", "p/x.mp4")]
)
def test_two_videos_for_one_folder_are_an_error_that_names_both(one, two, tmp_path):
    for name in (one, two):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{one} and {two} would both"):
        find_videos(tmp_path)


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.avi").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "videos" / "circle").symlink_to(tmp_path / "videos")
    assert [video.folder for video in find_videos(tmp_path / "videos")] == ["link/a"]
