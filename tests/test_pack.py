"""data/pack.py and the loaders on what it wrote: the same bytes and clips as from the folder, in few reads."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from PIL import Image
from video_files import make_video

from dataloader.clips import ClipDataset, Loader
from dataloader.frames import ReadFlow, ReadFrame, find_sources, index_frames
from dataloader.lists import load_split
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling, TrainSampling
from utils import InputError


@pytest.fixture(scope="module")
def packed(tiny, run, tmp_path_factory) -> Path:
    """tiny's rgb/ and flow/, packed into shards of about four videos."""
    root = tmp_path_factory.mktemp("packed")
    for kind in ("rgb", "flow"):
        run("data/pack.py", tiny / kind, root / kind, "--shard-size", 0.1)
    return root


def data_set(root: Path, kind: str, sampling) -> ClipDataset:
    index = index_frames(root / kind, kind)
    videos = load_split(None, 1, index.names, False).train
    read = ReadFrame if kind == "rgb" else ReadFlow
    preparation = default_preparation(kind, 48, "squash", 10 if kind == "flow" else 1)
    return ClipDataset(find_sources(index, videos), read(index.root), preparation, sampling)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["rgb", "flow"])
@pytest.mark.parametrize("sampling", [TrainSampling(2), TestSampling(4)])
def test_clips_are_those_of_the_folder(tiny, packed, kind, sampling):
    folder, pack = data_set(tiny, kind, sampling), data_set(packed, kind, sampling)
    assert len(list((packed / kind).glob("*.tar"))) > 1
    assert len(folder) == len(pack) == 6
    batches = list(Loader(pack, 1, 2, torch.device("cpu")).epoch(3))
    for got, expected in zip(batches, Loader(folder, 1, 0, torch.device("cpu")).epoch(3), strict=True):
        assert got.names == expected.names
        for field in ("labels", "images", "clips", "flip"):
            assert torch.equal(getattr(got, field), getattr(expected, field)), field


def test_unpacking_with_tar_gives_the_files_back(tiny, packed, tmp_path):
    for shard in (packed / "flow").glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path, filter="data")
    before = {path.relative_to(tiny / "flow"): path.read_bytes() for path in (tiny / "flow").rglob("frame*.jpg")}
    after = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert before == after and len(before) > 200


@pytest.mark.skipif(not hasattr(os, "pread"), reason="no pread on this system")
def test_a_stack_is_two_reads_and_a_frame_one(packed, monkeypatch):
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *place: calls.append(place) or pread(*place))
    stacks, frames = data_set(packed, "flow", TrainSampling(1)), data_set(packed, "rgb", TrainSampling(1))
    stacks[0, 1]
    assert len(calls) == 2
    calls.clear()
    frames[0, 2]
    assert len(calls) == 1


@pytest.mark.parametrize("at_once", [5, 64])
def test_long_runs_are_read_in_parts(tiny, packed, monkeypatch, at_once):
    monkeypatch.setattr("dataloader.packed.READ_AT_ONCE", at_once)
    if at_once == 64:
        monkeypatch.delattr(os, "pread", raising=False)  # as on Windows
    index = index_frames(packed / "rgb", "rgb")
    for name in index.names:
        frames = index.videos[name]["rgb"]
        steps = [step for step in range(frames.count) if step != 3]
        paths, contents = zip(*frames.read(index.root, steps), strict=True)
        files = [tiny / f"rgb/v_{name}/frame{step + 1:06d}.jpg" for step in steps]
        assert list(contents) == [file.read_bytes() for file in files]
        assert [path.split("/")[-1] for path in paths] == [file.name for file in files]


def test_a_data_set_goes_to_another_process(packed):
    dataset = data_set(packed, "rgb", TestSampling(3))
    expected = dataset[0, 0].images  # its files are open now
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0, 0].images, expected)


def test_a_pack_killed_at_any_time_is_finished_by_the_next_run(tiny, packed, run, tmp_path):
    target = tmp_path / "pack"
    command = [sys.executable, str(ROOT / "data/pack.py"), str(tiny / "flow"), str(target), "--shard-size", "0.1"]
    for number in (1,):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (target / f"shard-{number:05d}.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
        assert (target / f"shard-{number:05d}.json").is_file()
    run("data/pack.py", tiny / "flow", target, "--shard-size", 0.1)
    expected = digests(packed / "flow")
    assert {name: digest for name, digest in digests(target).items() if not name.startswith(".")} == expected
    assert "packed already" in run("data/pack.py", tiny / "flow", target).stdout


def test_a_pack_is_of_what_the_folder_holds_now(run, tmp_path):
    """After another extraction a whole pack is no longer the folder's, and a half-finished one starts again."""
    videos, frames, pack = tmp_path / "videos", tmp_path / "rgb", tmp_path / "pack"
    for seed in range(3):
        make_video(videos / f"{'abc'[seed]}.avi", seed)
    extract = ("data/extract_rgb.py", videos, frames, "--sampling-rate", 1, "--workers", 1)
    run(*extract, "--short-side", 96)
    run("data/pack.py", frames, pack, "--shard-size", 0)
    assert len(list(pack.glob("*.tar"))) == 3
    assert "packed already" in run("data/pack.py", frames, pack, "--shard-size", 0).stdout
    half = shutil.copytree(pack, tmp_path / "half")
    for name in ("pack.json", "shard-00002.json"):
        (half / name).unlink()
    run(*extract, "--short-side", 64, "--overwrite")
    assert "older state" in run("data/pack.py", frames, pack, "--shard-size", 0, code=2).stderr
    run("data/pack.py", frames, half, "--shard-size", 0)
    index = index_frames(half, "rgb")
    images = [data for one in index.videos.values() for _, data in one["rgb"].read(half, range(26))]
    assert {Image.open(io.BytesIO(data)).size for data in images} == {(85, 64)} and len(images) == 78
    make_video(videos / "b.avi", 7)  # one video replaced: what lies before it is kept
    (half / "pack.json").unlink()
    kept = (half / "shard-00000.tar").stat().st_mtime_ns
    run(*extract, "--short-side", 64)
    run("data/pack.py", frames, half, "--shard-size", 0)
    assert (half / "shard-00000.tar").stat().st_mtime_ns == kept
    with tarfile.open(half / "shard-00001.tar") as tar:
        assert tar.getnames()[0] == "b/frame000001.jpg"
    (videos / "c.avi").unlink()
    shutil.rmtree(frames / "c")
    (half / "pack.json").unlink()
    run("data/pack.py", frames, half, "--shard-size", 0)
    assert len(list(half.glob("*.tar"))) == 2
    assert "packed already" in run("data/pack.py", frames, half, "--shard-size", 0).stdout
    again = next(index_frames(half, "rgb").videos["b"]["rgb"].read(half, [25]))[1]
    assert again == (frames / "b" / "frame000026.jpg").read_bytes()


def test_an_unfinished_pack_is_not_read(packed, tmp_path, run):
    shutil.copytree(packed / "rgb", tmp_path / "rgb")
    (tmp_path / "rgb" / "pack.json").unlink()
    with pytest.raises(InputError, match="unfinished pack.*data/pack.py"):
        index_frames(tmp_path / "rgb", "rgb")


def damage_table(pack: Path) -> None:
    table = np.load(pack / "shard-00000.npy")
    table[:, 0] += 10**12
    np.save(pack / "shard-00000.npy", table)


def shorten_table(pack: Path) -> None:
    np.save(pack / "shard-00000.npy", np.load(pack / "shard-00000.npy")[:1])


def pickle_table(pack: Path) -> None:
    np.save(pack / "shard-00000.npy", np.array([{}], dtype=object))


def narrow_table(pack: Path) -> None:
    np.save(pack / "shard-00000.npy", np.load(pack / "shard-00000.npy")[:, :1])


def grown(pack: Path) -> None:
    with open(pack / "shard-00000.tar", "ab") as file:
        file.write(b"of another pack")


def gone(pack: Path) -> None:
    (pack / "shard-00000.tar").unlink()


def other_json(pack: Path) -> None:
    (pack / "shard-00000.json").write_text('{"sequences": [["v_Archery_g01_c01", "frame", 6, "many", 12, ".jpg"]]}')


def outside(pack: Path) -> None:
    about = json.loads((pack / "pack.json").read_text())
    about["shards"][0]["name"] = "../elsewhere"
    (pack / "pack.json").write_text(json.dumps(about))


DAMAGES = [damage_table, shorten_table, pickle_table, narrow_table, grown, gone, other_json, outside]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_pack_is_one_line(packed, tmp_path, damage):
    shutil.copytree(packed / "rgb", tmp_path / "rgb")
    damage(tmp_path / "rgb")
    with pytest.raises(InputError) as caught:
        for i in range(6):
            batch = data_set(tmp_path, "rgb", TestSampling(3))[0, i]
            if isinstance(batch, InputError):
                raise batch
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_what_cannot_be_packed_is_one_line(tiny, packed, run, tmp_path):
    assert "not flow" in run("motion_cnn.py", *SMALL, "--flow-dir", packed / "rgb", code=2).stderr
    assert "outside" in run("data/pack.py", tiny / "rgb", tiny / "rgb" / "pack", code=2).stderr
    assert "packed already" in run("data/pack.py", packed / "rgb", tmp_path / "again", code=2).stderr
    source = shutil.copytree(tiny / "flow", tmp_path / "flow")
    run("data/pack.py", source, tmp_path / "pack", "--shard-size", 0.1)
    next((source / "u").glob("v_*/frame000012.jpg")).unlink()
    assert "--skip-broken" in run("data/pack.py", source, tmp_path / "new", code=2).stderr
    assert "older state" in run("data/pack.py", source, tmp_path / "pack", "--skip-broken", code=2).stderr
    assert "11 videos" in run("data/pack.py", source, tmp_path / "new", "--skip-broken").stdout


def test_long_and_foreign_names_keep_their_place(tmp_path, run):
    """Names over 100 bytes take further headers in a tar file, which the table must know of."""
    from conftest import write_images

    for number, name in enumerate(("class one/" + "x" * 120, "Ålesund/视频")):
        write_images(tmp_path / "frames" / name, "img_", 4, (40, 30), "RGB", number)
    run("data/pack.py", tmp_path / "frames", tmp_path / "pack")
    folder, pack = index_frames(tmp_path / "frames", "rgb"), index_frames(tmp_path / "pack", "rgb")
    assert folder.names == pack.names and len(pack.names) == 2
    for name in folder.names:
        one, other = folder.videos[name]["rgb"], pack.videos[name]["rgb"]
        assert dataclasses.asdict(one).items() <= {k: getattr(other, k) for k in other.__dataclass_fields__}.items()
        bytes_read = [data for _, data in other.read(pack.root, [0, 2, 3])]
        assert bytes_read == [one.path(folder.root, i).read_bytes() for i in (0, 2, 3)]
