"""Extraction of frames: counts, layout, killing and resuming, shards, broken videos, bad input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data.jobs import run_jobs
from data.videos import VideoError, find_videos, read_frames
from dataloader.extracted import fingerprint
from dataloader.frames import index_frames
from dataloader.packed import Frames
from utils import InputError

cv2 = pytest.importorskip("cv2")

SCRIPTS = ("data/extract_rgb.py", "data/extract_flow.py")


def make_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), codec: str = "MJPG") -> Path:
    """Grey frames, frame k of brightness 10 + 5k, on which a square moves 2 pixels to the right per frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, size)
    assert writer.isOpened()
    square = np.add.outer(np.arange(20) * 7, np.arange(20) * 5)[:, :, None] % 200
    for k in range(frames):
        image = np.full((size[1], size[0], 3), 10 + 5 * (k % 40), np.uint8)
        left = 4 + 2 * (k % 18)
        image[10:30, left : left + 20] = square
        writer.write(image)
    writer.release()
    return path


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


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


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Six videos of two classes with UCF101 names."""
    root = tmp_path_factory.mktemp("videos")
    for clip in range(3):
        make_video(root / "Biking" / f"v_Biking_g01_c0{clip + 1}.avi", frames=12 + clip)
        make_video(root / "Diving" / f"v_Diving_g01_c0{clip + 1}.avi", frames=40 + clip)
    return root


@pytest.fixture(scope="module")
def uninterrupted(videos, run, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What each script writes for `videos` when nobody disturbs it."""
    trees = {}
    for script in SCRIPTS:
        out = tmp_path_factory.mktemp("uninterrupted") / "out"
        run(script, videos, out, *arguments(script))
        trees[script] = tree(out)
    return trees


def arguments(script: str) -> list[str]:
    """Fast settings."""
    own = ["--sampling-rate", "1"] if "rgb" in script else ["--method", "dis"]
    return ["--short-side", "48", "--workers", "2", *own]


# --- what is written -----------------------------------------------------------------------------------


def test_decoded_counts_are_those_of_the_manifest(shared, run, tmp_path):
    clips = shared / "data" / "ucf101_clips"
    run("data/extract_rgb.py", clips / "HammerThrow", tmp_path, "--sampling-rate", "1", "--short-side", "32")
    with open(clips / "MANIFEST.csv", newline="") as file:
        expected = {row["name"].removesuffix(".avi"): int(row["frames"]) for row in csv.DictReader(file)}
    found = {folder.name: images(folder) for folder in tmp_path.iterdir() if folder.name.startswith("v_")}
    assert found.keys() == {path.stem for path in (clips / "HammerThrow").glob("*.avi")}
    for name, names in found.items():
        assert names == [f"frame{k:06d}.jpg" for k in range(1, expected[name] + 1)]


def test_sampling_keeps_every_nth_frame_and_numbers_without_gaps(run, tmp_path):
    make_video(tmp_path / "videos" / "v_Biking_g01_c01.avi", frames=23)
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out")
    folder = tmp_path / "out" / "v_Biking_g01_c01"
    assert images(folder) == ["frame000001.jpg", "frame000002.jpg", "frame000003.jpg"]  # of frames 1, 11, 21
    for number, brightness in ((1, 10), (2, 60), (3, 110)):
        image = np.asarray(Image.open(folder / f"frame{number:06d}.jpg"))
        assert image.shape == (256, 341, 3)
        assert abs(float(image[200:].mean()) - brightness) < 3
    settings = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert settings == {
        "kind": "rgb",
        "version": 1,
        "settings": {"short_side": 256, "quality": 90, "sampling_rate": 10},
    }


def test_colours_stay_in_their_channels(run, tmp_path):
    (tmp_path / "videos").mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "videos" / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    writer.write(np.full((48, 64, 3), (20, 30, 200), np.uint8))  # OpenCV takes blue, green, red
    writer.release()
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--short-side", "0")
    image = np.asarray(Image.open(tmp_path / "out" / "red" / "frame000001.jpg"))
    assert image.shape == (48, 64, 3)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), (200, 30, 20), atol=4)


def test_other_names_keep_their_folders(run, tmp_path):
    root, names = tmp_path / "videos", ("fight/fi001", "fight/deep/er/x", "no fight/a.b", "no fight/ü", "m")
    for name in names:
        make_video(root / f"{name}.avi")
    make_video(root / "._hidden.avi")
    run("data/extract_rgb.py", root, root / "out", "--sampling-rate", "1", "--short-side", "0")
    assert all(len(images(root / "out" / name)) == 12 for name in names)
    assert len(list((root / "out").rglob("*.jpg"))) == 12 * len(names)


def test_frames_are_streamed(tmp_path):
    """Decoding starts with the first frame asked for and goes no further than the last one."""
    path = make_video(tmp_path / "a.avi", frames=30)
    cut(path, 0.6)
    frames = read_frames(path)
    for _ in range(5):
        assert next(frames).shape == (48, 64, 3)  # the cut is not noticed before it is reached
    with pytest.raises(VideoError, match="cut off"):
        list(frames)


def test_its_processes_do_without_torch():
    """A worker that imports torch costs two seconds and 400 MB more, on each core."""
    code = "import sys, data.extract_rgb, data.extract_flow, data.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- killed, started again, shared -----------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(script, videos, uninterrupted, run, tmp_path):
    out = tmp_path / "out"
    whole = len(uninterrupted[script])
    command = [sys.executable, str(ROOT / script), str(videos), str(out), *arguments(script)]
    half_done = 0
    for share in (0.2, 0.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and count_files(out) < share * whole:
            time.sleep(0.002)
        process.kill()  # SIGKILL
        process.wait()
        half_done += count_files(out) > 0 and count_files(out / ".done") < 6
    assert half_done
    run(script, videos, out, *arguments(script))
    assert tree(out) == uninterrupted[script]
    assert "nothing left to do" in run(script, videos, out, *arguments(script)).stdout
    assert tree(out) == uninterrupted[script]


def test_what_a_kill_between_two_renames_leaves_is_redone(videos, uninterrupted, run, tmp_path):
    script, out = "data/extract_flow.py", tmp_path / "out"
    run(script, videos, out, *arguments(script))
    done = {name: out / ".done" / f"v_Biking_g01_c0{name}.json" for name in (1, 2)}
    done[1].unlink()
    (out / "u" / "v_Biking_g01_c01" / "frame000003.jpg").write_bytes(b"half")  # u moved, v not, no marker
    for path in (out / "v" / "v_Biking_g01_c01").iterdir():
        path.unlink()
    (out / "v" / "v_Biking_g01_c01").rmdir()
    done[2].write_text("{")  # a marker cut in half by a power failure
    (out / ".partial" / "dead" / "x" / "u").mkdir(parents=True)
    (out / ".partial" / "dead.lock").touch()
    run(script, videos, out, *arguments(script))
    assert tree(out) == uninterrupted[script]
    assert not (out / ".partial").exists()


def test_workers_die_with_a_killed_parent(tmp_path):
    """The workers of a killed run write no further, so that a new run isn't disturbed."""
    logs = [tmp_path / "a", tmp_path / "b"]
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from data.jobs import run_jobs
from test_extract import write_on
if __name__ == "__main__":
    list(run_jobs([write_on, write_on], {[str(log) for log in logs]!r}))
"""
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    while not all(log.exists() and log.stat().st_size for log in logs):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(1)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(0.5)
    assert [log.stat().st_size for log in logs] == sizes


def write_on(path: str, report) -> None:
    """Write a byte every 10 ms, for at most 30 s."""
    for _ in range(3000):
        with open(path, "ab") as file:
            file.write(b"x")
        time.sleep(0.01)


def test_shards_and_the_same_work_started_at_once_make_the_whole(videos, uninterrupted, tmp_path):
    script, out = "data/extract_rgb.py", tmp_path / "out"
    command = [sys.executable, str(ROOT / script), str(videos), str(out), *arguments(script)]
    processes = [
        subprocess.Popen([*command, "--shard", f"{k}/2"], stdout=subprocess.PIPE, text=True) for k in (1, 2, 2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all("3 videos of 6 (shard " in output for output in outputs)
    assert tree(out) == uninterrupted[script]


def test_machines_that_start_at_once_with_different_settings_do_not_mix(videos, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "data/extract_rgb.py"), str(videos), str(out), "--workers", "1"]
    sides = (32, 48)
    processes = {
        side: subprocess.Popen([*command, "--short-side", str(side)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for side in sides
    }
    codes = {side: (process.communicate()[1], process.returncode)[1] for side, process in processes.items()}
    winner = json.loads((out / "extraction.json").read_text())["settings"]["short_side"]
    assert codes == {side: 0 if side == winner else 2 for side in sides}
    assert {Image.open(path).height for path in out.rglob("*.jpg")} == {winner}


# --- other settings, other files ---------------------------------------------------------------------------


def test_other_settings_are_refused_and_overwrite_redoes(videos, run, tmp_path):
    script, out = "data/extract_rgb.py", tmp_path / "out"
    run(script, videos, out, *arguments(script))
    before = tree(out)
    error = run(script, videos, out, "--short-side", "32", "--sampling-rate", "1", code=2).stderr
    assert "short_side 48 there, 32 asked" in error
    assert "--overwrite" in error
    error = run("data/extract_flow.py", videos, out, "--method", "dis", "--overwrite", code=2).stderr
    assert "holds rgb, not flow" in error
    assert tree(out) == before
    run(script, videos, out, "--short-side", "32", "--sampling-rate", "5", "--overwrite")
    assert {Image.open(path).height for path in out.rglob("*.jpg")} == {32}
    assert images(out / "v_Biking_g01_c01") == [f"frame{k:06d}.jpg" for k in (1, 2, 3)]  # 12 frames, every fifth


def test_a_folder_of_something_else_is_not_written_into(videos, run, tmp_path):
    (tmp_path / "v_Biking_g01_c01").mkdir()
    error = run("data/extract_rgb.py", videos, tmp_path, code=2).stderr
    assert "did not extract" in error
    assert images(tmp_path) == ["v_Biking_g01_c01"]


def test_a_video_that_was_replaced_is_extracted_again(run, tmp_path):
    path = make_video(tmp_path / "videos" / "a.avi", frames=12)
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--sampling-rate", "1")
    make_video(path, frames=15)
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--sampling-rate", "1")
    assert len(images(tmp_path / "out" / "a")) == 15
    path.write_text("no video any more")
    run("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--sampling-rate", "1", code=1)
    assert not (tmp_path / "out" / "a").exists()  # no frames of a video that has failed
    assert list((tmp_path / "out" / ".done").iterdir()) == []


def test_a_video_of_the_same_size_is_another_by_its_content_not_its_time(run, tmp_path):
    """What was extracted is kept under the content of its file, and so is what others compute from it."""
    path = make_video(tmp_path / "videos" / "a.avi", frames=12)
    command = ("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--short-side", "48")

    def key() -> str:
        return fingerprint(tmp_path / "out", Frames("a", "frame", 6, 1, 2, ".jpg"))

    run(*command)
    before = key(), tree(tmp_path / "out" / "a")
    os.utime(path, (1, 1))  # a copy
    assert "nothing left to do" in run(*command).stdout
    assert (key(), tree(tmp_path / "out" / "a")) == before
    data = bytearray(path.read_bytes())
    data[data.index(b"movi") + 12 + 700] ^= 1  # in the first frame
    path.write_bytes(data)
    assert "1 to do" in run(*command).stdout
    assert key() != before[0]
    changed = key()
    run(*command, "--quality", "50", "--overwrite")
    assert key() not in (before[0], changed)


def test_videos_whose_names_are_swapped_are_extracted_again(run, tmp_path):
    """Of one size and time, as uncompressed ones out of an archive are; mv keeps both."""
    one, two = (make_video(tmp_path / "videos" / f"{name}.avi", frames=n) for name, n in (("a", 4), ("b", 9)))
    for path in (one, two):
        path.write_bytes(path.read_bytes().ljust(50_000, b"\0"))
        os.utime(path, (1, 1))
    command = ("data/extract_rgb.py", tmp_path / "videos", tmp_path / "out", "--sampling-rate", "1")
    run(*command)
    one.rename(tmp_path / "c")
    two.rename(one)
    (tmp_path / "c").rename(two)
    assert "2 to do" in run(*command).stdout
    assert [len(images(tmp_path / "out" / name)) for name in "ab"] == [9, 4]


def test_a_name_that_changes_in_case_alone_leaves_no_second_frames(run, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    make_video(videos / "Run/a.avi"), make_video(videos / "Sit/a.avi")
    run("data/extract_rgb.py", videos, out)
    (videos / "Run").rename(videos / "r")
    (videos / "r").rename(videos / "run")
    run("data/extract_rgb.py", videos, out)
    assert index_frames(out, "rgb").problems == {}
    assert "nothing left" in run("data/extract_rgb.py", videos, out).stdout


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


def test_broken_videos_are_listed_and_the_others_done(run, tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for name in ("good", "cut", "whole/later"):
        make_video(root / f"{name}.avi", frames=40)
    cut(root / "cut.avi", 0.5)
    (root / "empty.mp4").touch()
    (root / "text.mkv").write_text("this is no video")
    (root / "link.avi").symlink_to(root / "nowhere")
    command = ("data/extract_rgb.py", root, out, "--sampling-rate", "1", "--short-side", "0")
    shards = [run(*command, "--shard", shard, code=1) for shard in ("1/2", "2/2")]
    said = "".join(process.stderr for process in shards)
    assert len(images(out / "good")) == len(images(out / "whole" / "later")) == 40
    assert not (out / "cut").exists()
    reasons = failures(out)
    assert sorted(reasons) == ["cut.avi", "empty.mp4", "link.avi", "text.mkv"]
    assert "cut off or damaged: " in reasons["cut.avi"]
    assert "empty" in reasons["empty.mp4"]
    assert all(f"{name}: {reason}" in said for name, reason in reasons.items())
    assert "Traceback" not in said

    make_video(root / "cut.avi", frames=40)  # one is put right, two are removed
    (root / "empty.mp4").unlink()
    (root / "link.avi").unlink()
    run(*command, code=1)
    assert list(failures(out)) == ["text.mkv"]
    (root / "text.mkv").unlink()
    run(*command)
    assert not (out / "failed.csv").exists()
    assert len(images(out / "cut")) == 40


def test_a_single_frame_has_no_flow(run, tmp_path):
    make_video(tmp_path / "videos" / "a.avi", frames=1)
    make_video(tmp_path / "videos" / "b.avi", frames=2)
    run("data/extract_flow.py", tmp_path / "videos", tmp_path / "out", "--method", "dis", code=1)
    assert "single frame" in failures(tmp_path / "out")["a.avi"]
    assert len(images(tmp_path / "out" / "u" / "b")) == len(images(tmp_path / "out" / "v" / "b")) == 1
    assert images(tmp_path / "out" / "u") == ["b"]


def die_on_two(job: int, report) -> int:
    report("seen", job)
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def test_a_process_that_dies_costs_only_its_own_job():
    events = list(run_jobs([die_on_two, die_on_two], [0, 1, 2, 3, 4]))
    assert {index: value for index, event, value in events if event == "result"} == {0: 0, 1: 1, 3: 9, 4: 16}
    (crashed,) = [(index, value) for index, event, value in events if event == "crashed"]
    assert crashed[0] == 2
    assert "SIGKILL" in crashed[1]


def raise_input_error(job: int, report) -> None:
    raise InputError("the disk is full")


def test_what_no_job_can_survive_is_raised_in_the_parent():
    with pytest.raises(InputError, match="the disk is full"):
        list(run_jobs([raise_input_error], [1, 2]))


def test_bad_input_is_one_line(videos, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, message in (
        ([tmp_path / "missing", tmp_path / "out"], "missing does not exist"),
        ([tmp_path / "empty", tmp_path / "out"], "empty holds no video"),
        ([tmp_path / "file", tmp_path / "out"], "file is a file"),
        ([videos, tmp_path / "file"], "file is a file"),
        ([videos, tmp_path / "out", "--quality", "0"], "--quality: must be from 1 to 100, not 0"),
        ([videos, tmp_path / "out", "--shard", "5/4"], "give K/N with K from 1 to N"),
    ):
        assert message in run("data/extract_rgb.py", *arguments, code=2).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("one", "two"),
    [("p/v_Biking_g01_c01.avi", "q/v_Biking_g01_c01.avi"), ("p/X.avi", "p/x.mp4"), ("a.avi", "a/b.avi")],
)
def test_two_videos_for_one_folder_are_an_error_that_names_both(one, two, tmp_path):
    for name in (one, two):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError) as error:
        find_videos(tmp_path)
    assert one in str(error.value)
    assert two in str(error.value)


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.avi").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "videos" / "circle").symlink_to(tmp_path / "videos")
    found: list = []
    thread = threading.Thread(target=lambda: found.extend(find_videos(tmp_path / "videos")), daemon=True)
    thread.start()
    thread.join(10)
    assert [video.folder for video in found] == ["link/a"]
