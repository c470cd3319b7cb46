"""data/pack.py and the loaders on what it wrote: the same bytes and clips as from the folder, in few reads."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_images

from data.pack import pack_folder
from dataloader.clips import ClipDataset
from dataloader.frames import ReadFlow, ReadFrame, find_sources
from dataloader.layouts import index_frames
from dataloader.lists import load_split
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling, TrainSampling
from utils import InputError

SHARD = 1e5  # bytes: about four videos


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory) -> Path:
    """tiny's rgb/ and flow/, packed into shards of about four videos."""
    root = tmp_path_factory.mktemp("packed")
    for kind in ("rgb", "flow"):
        pack_folder(tiny / kind, root / kind, shard_size=SHARD)
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
    for i in range(6):
        got, expected = pack[3, i], folder[3, i]
        pack = pickle.loads(pickle.dumps(pack))  # to another process, with files that are open now
        assert got.names == expected.names
        for field in ("labels", "images", "clips", "flip"):
            assert torch.equal(getattr(got, field), getattr(expected, field)), field


def test_unpacking_with_tar_gives_the_files_back(tiny, packed, tmp_path):
    for shard in (packed / "flow").glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path, filter="data")
    before, after = ({path.relative_to(root): path.read_bytes() for path in root.rglob("frame*.jpg")}
                     for root in (tiny / "flow", tmp_path))  # fmt: skip
    assert before == after and len(before) > 200


def test_a_stack_is_two_reads_and_a_frame_one(packed, monkeypatch):
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *place: calls.append(place) or pread(*place))
    for kind, reads in ("flow", 2), ("rgb", 1):
        calls.clear()
        data_set(packed, kind, TrainSampling(1))[0, 1]
        assert len(calls) == reads


def test_long_runs_are_read_in_parts(tiny, packed, monkeypatch):
    monkeypatch.setattr("dataloader.packed.READ_AT_ONCE", 5)
    index = index_frames(packed / "rgb", "rgb")
    for name in index.names:
        frames = index.videos[name]["rgb"]
        steps = [step for step in range(frames.count) if step != 3]
        paths, contents = zip(*frames.read(index.root, steps), strict=True)
        files = [tiny / f"rgb/v_{name}/frame{step + 1:06d}.jpg" for step in steps]
        assert list(contents) == [file.read_bytes() for file in files]
        assert [path.split("/")[-1] for path in paths] == [file.name for file in files]


def test_a_pack_killed_at_any_time_is_finished_by_the_next_run(tiny, packed, tmp_path):
    target = tmp_path / "pack"
    code = f"from pathlib import Path; from data.pack import pack_folder\n" \
           f"pack_folder(Path({str(tiny / 'flow')!r}), Path({str(target)!r}), shard_size={SHARD})"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (target / "shard-00001.json").is_file() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="unfinished pack.*data/pack.py"):
        index_frames(target, "flow")
    pack_folder(tiny / "flow", target, shard_size=SHARD)
    expected = digests(packed / "flow")
    assert {name: digest for name, digest in digests(target).items() if not name.startswith(".")} == expected
    assert "packed already" in pack_folder(tiny / "flow", target)


def test_a_pack_is_of_what_the_folder_holds_now(tmp_path):
    """After another extraction a whole pack is no longer the folder's, and a half-finished one starts again."""
    frames, pack = tmp_path / "rgb", tmp_path / "pack"
    for seed, name in enumerate("abc"):
        write_images(frames / name, "frame", 4, (40, 30), "RGB", seed)
    pack_folder(frames, pack, shard_size=0)
    assert len(list(pack.glob("*.tar"))) == 3
    assert "packed already" in pack_folder(frames, pack, shard_size=0)
    shutil.rmtree(frames / "b")
    write_images(frames / "b", "frame", 4, (40, 30), "RGB", 7)  # one video replaced
    with pytest.raises(InputError, match="older state"):
        pack_folder(frames, pack, shard_size=0)
    (pack / "pack.json").unlink()
    kept = (pack / "shard-00000.tar").stat().st_mtime_ns
    pack_folder(frames, pack, shard_size=0)
    assert (pack / "shard-00000.tar").stat().st_mtime_ns == kept  # what lies before it
    again = next(index_frames(pack, "rgb").videos["b"]["rgb"].read(pack, [3]))[1]
    assert again == (frames / "b" / "frame000004.jpg").read_bytes()
    shutil.rmtree(frames / "c")
    (pack / "pack.json").unlink()
    pack_folder(frames, pack, shard_size=0)
    assert len(list(pack.glob("*.tar"))) == 2


TABLE, TAR, LISTED, PACK = "shard-00000.npy", "shard-00000.tar", "shard-00000.json", "pack.json"
DAMAGES = {
    "beyond": (TABLE, lambda path: np.save(path, np.load(path) + 10**12)),
    "short": (TABLE, lambda path: np.save(path, np.load(path)[:1])),
    "pickled": (TABLE, lambda path: np.save(path, np.array([{}], dtype=object))),
    "grown": (TAR, lambda path: path.write_bytes(path.read_bytes() + b"of another pack")), "gone": (TAR, Path.unlink),
    "other numbers": (LISTED, lambda path: path.write_text('{"sequences": [["v_A", "frame", 6, "many", 2, ".jpg"]]}')),
    "outside": (PACK, lambda path: path.write_text(path.read_text().replace("shard-00000", "../elsewhere"))),
}  # fmt: skip


@pytest.mark.parametrize("name, damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pack_is_one_line(packed, tmp_path, name, damage):
    shutil.copytree(packed / "rgb", tmp_path / "rgb")
    damage(tmp_path / "rgb" / name)
    with pytest.raises(InputError, match=re.escape(str(tmp_path))) as caught:
        for i in range(6):
            batch = data_set(tmp_path, "rgb", TestSampling(3))[0, i]
            if isinstance(batch, InputError):
                raise batch
    assert "\n" not in str(caught.value)


def test_what_cannot_be_packed_is_one_line(tiny, packed, run, tmp_path):
    assert "outside" in run("data/pack.py", tiny / "rgb", tiny / "rgb" / "pack", code=2).stderr
    with pytest.raises(InputError, match="not flow"):
        index_frames(packed / "rgb", "flow")
    with pytest.raises(InputError, match="packed already"):
        pack_folder(packed / "rgb", tmp_path / "again")
    source = shutil.copytree(tiny / "flow", tmp_path / "flow")
    pack_folder(source, tmp_path / "pack")
    next((source / "u").glob("v_*/frame000012.jpg")).unlink()
    with pytest.raises(InputError, match="--skip-broken"):
        pack_folder(source, tmp_path / "new")
    assert "11 videos" in pack_folder(source, tmp_path / "new", skip_broken=True)


def test_long_and_foreign_names_keep_their_place(tmp_path):
    """Names over 100 bytes take further headers in a tar file, which the table must know of."""
    for number, name in enumerate(("class one/" + "x" * 120, "Ålesund/视频")):
        write_images(tmp_path / "frames" / name, "img_", 4, (40, 30), "RGB", number)
    pack_folder(tmp_path / "frames", tmp_path / "pack")
    folder, pack = index_frames(tmp_path / "frames", "rgb"), index_frames(tmp_path / "pack", "rgb")
    assert folder.names == pack.names and len(pack.names) == 2
    for name in folder.names:
        one, other = folder.videos[name]["rgb"], pack.videos[name]["rgb"]
        assert dataclasses.asdict(one).items() <= {k: getattr(other, k) for k in other.__dataclass_fields__}.items()
        bytes_read = [data for _, data in other.read(pack.root, [0, 2, 3])]
        assert bytes_read == [one.path(folder.root, i).read_bytes() for i in (0, 2, 3)]
