"""The cache of what folders hold: what it saves, what it notices, and where it lies."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from frame_files import make, numbered

from dataloader import frames
from dataloader.frames import CACHE_NAME, find, index_frames
from utils import InputError

pytestmark = pytest.mark.usefixtures("user_cache")


def settle(root: Path) -> None:
    """Set all folders' times back, as if nobody had touched them for an hour."""
    hour_ago = time.time() - 3600
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (hour_ago, hour_ago))


@pytest.fixture
def trusting(monkeypatch):
    """The cache takes times as they are: a change time can't be set back for a test."""
    monkeypatch.setattr(frames, "_SETTLED_NS", -(10**18))


def listed(monkeypatch) -> list[str]:
    """The folders that get listed from now on."""
    calls: list[str] = []
    original = frames._list

    def spy(full: str, path: str):
        calls.append(path)
        return original(full, path)

    monkeypatch.setattr(frames, "_list", spy)
    return calls


def tree(root: Path) -> Path:
    for clip in (1, 2, 3):
        make(root / f"Biking/v_Biking_g01_c{clip:02d}", *numbered("frame%06d.jpg", 1, 10 + clip))
    return root


def counts(root: Path) -> dict[str, int]:
    index = index_frames(root, "rgb")
    return {name: find(index, name).count if name not in index.problems else -1 for name in index.names}


def test_a_warm_start_lists_only_the_root(tmp_path, monkeypatch, trusting):
    root = tree(tmp_path / "rgb")
    cold = index_frames(root, "rgb")
    calls = listed(monkeypatch)
    assert index_frames(root, "rgb") == cold
    assert calls == [""]
    before = (root / CACHE_NAME).stat().st_mtime_ns
    index_frames(root, "rgb")
    assert (root / CACHE_NAME).stat().st_mtime_ns == before  # nothing new, nothing written


def remove_a_file(root: Path) -> None:
    (root / "Biking/v_Biking_g01_c03/frame000013.jpg").unlink()


def add_a_file(root: Path) -> None:
    make(root / "Biking/v_Biking_g01_c01", "frame000012.jpg")


def rename_a_file(root: Path) -> None:
    folder = root / "Biking/v_Biking_g01_c02"
    (folder / "frame000003.jpg").rename(folder / "frame000003.jpg.bak")


def add_a_folder(root: Path) -> None:
    make(root / "Diving/v_Diving_g01_c01", *numbered("frame%06d.jpg", 0, 15))


def remove_a_folder(root: Path) -> None:
    for file in (root / "Biking/v_Biking_g01_c01").iterdir():
        file.unlink()
    (root / "Biking/v_Biking_g01_c01").rmdir()


def rename_a_folder(root: Path) -> None:
    (root / "Biking/v_Biking_g01_c01").rename(root / "Biking/v_Biking_g02_c01")


def swap_two_folders(root: Path) -> None:
    first, second = root / "Biking/v_Biking_g01_c01", root / "Biking/v_Biking_g01_c02"
    first.rename(root / "Biking/x")
    second.rename(first)
    (root / "Biking/x").rename(second)


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(
    "change, expected",
    [
        (remove_a_file, {"c03": 12}),
        (add_a_file, {"c01": 12}),
        (rename_a_file, {"c02": -1}),
        (add_a_folder, {"Diving_g01_c01": 15}),
        (remove_a_folder, {"c01": None}),
        (rename_a_folder, {"c01": None, "Biking_g02_c01": 11}),
        (swap_two_folders, {"c01": 12, "c02": 11}),
    ],
)
def test_the_cache_notices(tmp_path, change, expected, settled, monkeypatch):
    root = tree(tmp_path / "rgb")
    if settled:
        monkeypatch.setattr(frames, "_SETTLED_NS", -(10**18))
        time.sleep(0.02)  # more than a tick of this file system's times
    wanted = {"Biking_g01_c01": 11, "Biking_g01_c02": 12, "Biking_g01_c03": 13}
    assert counts(root) == wanted
    change(root)
    for name, count in expected.items():
        wanted[name if "_" in name else f"Biking_g01_{name}"] = count
    wanted = {name: count for name, count in wanted.items() if count is not None}
    assert counts(root) == wanted
    assert counts(root) == wanted


def test_a_folder_that_just_changed_is_not_trusted(tmp_path, monkeypatch):
    """A file system whose times tick every 2 s: a file added within the tick leaves the folder's times alone."""
    root = tree(tmp_path / "rgb")
    real_stat = os.stat

    def coarse(path, *args, **kwargs):
        status = real_stat(path, *args, **kwargs)
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        for name in ("st_mtime_ns", "st_ctime_ns"):
            fields[name] = moment
        return type("Status", (), fields)()

    moment = time.time_ns()
    monkeypatch.setattr(frames.os, "stat", coarse)
    counts(root)
    add_a_file(root)
    assert counts(root)["Biking_g01_c01"] == 12
    moment -= 10 * 10**9  # had it been left alone for 10 s, the same times would have been believed
    counts(root)
    make(root / "Biking/v_Biking_g01_c01", "frame000013.jpg")
    assert counts(root)["Biking_g01_c01"] == 12


def test_times_set_back_do_not_deceive(tmp_path, trusting):
    """tar and rsync set a folder's modification time to that of the original."""
    root = tree(tmp_path / "rgb")
    settle(root)
    assert counts(root)["Biking_g01_c01"] == 11
    time.sleep(0.02)  # change times tick with the kernel's clock
    add_a_file(root)
    settle(root)
    assert counts(root)["Biking_g01_c01"] == 12


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 999}', b'{"version": 2, "folders": {"": [7, []]}, "images": []}', b"\xff"],
)
def test_a_cache_that_is_none_of_ours_is_replaced(tmp_path, content):
    root = tree(tmp_path / "rgb")
    (root / CACHE_NAME).write_bytes(content)
    assert counts(root)["Biking_g01_c02"] == 12
    assert json.loads((root / CACHE_NAME).read_text())["version"] == 2


def test_a_root_that_cannot_be_written_is_cached_for_the_user(tmp_path, user_cache, monkeypatch, trusting):
    root = tree(tmp_path / "rgb")
    real = frames.atomic_path

    def read_only(target):
        if Path(target).is_relative_to(root):
            raise InputError("read-only")
        return real(target)

    monkeypatch.setattr(frames, "atomic_path", read_only)
    cold = index_frames(root, "rgb")
    assert not (root / CACHE_NAME).exists()
    assert len(list((user_cache / "two-stream").glob("*.json"))) == 1
    calls = listed(monkeypatch)
    assert index_frames(root, "rgb") == cold and calls == [""]

    monkeypatch.setattr(frames, "_cache_files", lambda root: [root / CACHE_NAME])
    assert index_frames(root, "rgb") == cold  # no cache at all


def test_the_newer_of_two_caches_counts(tmp_path, monkeypatch, trusting):
    root = tree(tmp_path / "rgb")
    index_frames(root, "rgb")
    os.utime(root / CACHE_NAME, (1, 1))
    add_a_folder(root)
    places = frames._cache_files(root)
    monkeypatch.setattr(frames, "_cache_files", lambda root: places[::-1])  # as if root could not be written
    index_frames(root, "rgb")
    monkeypatch.setattr(frames, "_cache_files", lambda root: places)
    calls = listed(monkeypatch)
    index_frames(root, "rgb")
    assert calls == [""]


def test_a_folder_that_goes_while_others_are_listed(tmp_path, monkeypatch):
    root = tree(tmp_path / "rgb")
    real_stat = os.stat

    def gone(path, *args, **kwargs):
        if str(path).endswith("c02"):
            raise FileNotFoundError(path)
        return real_stat(path, *args, **kwargs)

    monkeypatch.setattr(frames.os, "stat", gone)
    assert index_frames(root, "rgb").names == ["Biking_g01_c01", "Biking_g01_c03"]
