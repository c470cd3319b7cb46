"""Pack a folder of frames or flow into a few large files: network disks are slow with millions of small ones.

  python data/pack.py data/rgb data/rgb.pack
  python spatial_cnn.py --rgb-dir data/rgb.pack

The shards are plain tar files with the unchanged image files: `tar xf` restores the folder. Beside each shard
is a table of the images' positions, so that a clip is read with one or two seeks, in any order. An exactly
resumable random order needs that, and streaming formats (WebDataset) don't have it. You can kill it at any
moment; start it again, and it continues after the last complete shard that matches the folder.
"""

import contextlib
import hashlib
import io
import itertools
import shutil
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from common.commandline import ArgumentParser
from common.progress import progress_bar
from dataloader.extracted import FILE, fingerprint
from dataloader.frames import CHANNELS, Frames, Index, Kind
from dataloader.layouts import index_frames
from dataloader.names import first_few
from dataloader.packed import FORMAT, is_pack, read_shard
from utils import InputError, atomic_path, plural, run_main, write_json

SHARD = "shard-{:05d}"
SHARD_SIZE = 1e9  # bytes at which a shard is full
KINDS: tuple[Kind, ...] = ("rgb", "flow")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="RGB frames or optical flow, in any known layout")
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder to write to")
    parser.add_argument("--kind", choices=("rgb", "flow"), help="what to pack, where FOLDER holds both")
    parser.add_argument("--skip-broken", action="store_true", help="leave out videos with gaps or u and v that differ")
    args = parser.parse_args()
    print(pack_folder(args.source, args.pack, args.kind, args.skip_broken))


def pack_folder(
    source: Path, pack: Path, kind: Kind | None = None, skip_broken: bool = False, shard_size: float = SHARD_SIZE
) -> str:
    """Pack the images of `kind` in `source` into the folder `pack`, or continue that; return a report line."""
    if source.resolve() in (pack.resolve(), *pack.resolve().parents):
        raise InputError(f"{pack} lies in the folder to pack; give a place outside {source}")
    index = open_source(source, kind)
    if index.problems and not skip_broken:
        names, problem = first_few(sorted(index.problems)), next(iter(index.problems.values()))
        raise InputError(f"{plural(len(index.problems), 'video')} of {source} can't be used ({names}): {problem}; "
                         "extract again, or leave out with --skip-broken")  # fmt: skip
    images = [videos[channel] for _, videos in sorted(index.videos.items())
              for channel in CHANNELS[index.kind] if channel in videos]  # fmt: skip
    todo = [(frames, fingerprint(source, frames)) for frames in images]
    done, packed = finished_shards(pack, todo)
    if (pack / "pack.json").is_file():
        if packed < len(todo) or (pack / f"{SHARD.format(len(done))}.json").is_file():
            raise InputError(f"{pack} holds another data set, or an older state of this one; remove it or name another")
        return f"{pack} is packed already"
    with progress_bar(sum(frames.count for frames in images[packed:]), "packing", " images") as bar:
        while packed < len(todo):
            done.append(SHARD.format(len(done)))
            packed += write_shard(pack, done[-1], source, todo[packed:], shard_size, bar)
    for stale in pack.glob("shard-*"):  # left from an older state with more shards
        if stale.stem not in done:
            stale.unlink()
    if (source / FILE).is_file():
        with atomic_path(pack / FILE) as temporary:
            shutil.copyfile(source / FILE, temporary)
    shards = [{"name": name, "bytes": (pack / f"{name}.tar").stat().st_size} for name in done]
    whole = hashlib.sha256("".join(mark for _, mark in todo).encode()).hexdigest()
    write_json(pack / "pack.json",
               {"format": FORMAT, "version": 1, "kind": index.kind, "made_of": whole, "shards": shards})
    videos, size = plural(len(index.videos), "video"), sum(path.stat().st_size for path in pack.glob("*.tar"))
    return f"{videos} in {plural(len(shards), 'shard')}, {size / 1e6:,.0f} MB: --{index.kind}-dir {pack}"


def open_source(source: Path, kind: Kind | None) -> Index:
    """Return the index of the RGB frames or flow in `source`. Raises InputError for both or neither."""
    if source.is_dir() and is_pack(source):
        raise InputError(f"{source} is packed already")
    found = []
    for one in (kind,) if kind else KINDS:
        with contextlib.suppress(InputError):
            found.append(index_frames(source, one))
    if len(found) == 2:
        raise InputError(f"{source} holds RGB frames and flow: say which to pack with --kind rgb or --kind flow")
    return found[0] if found else index_frames(source, kind or "rgb")  # which raises the reason


def finished_shards(pack: Path, todo: list[tuple[Frames, str]]) -> tuple[list[str], int]:
    """Return the names of complete shards with the first of `todo` (images, fingerprint), and their number.

    A shard whose images were extracted again since, or with other settings, ends the count.
    """
    names: list[str] = []
    packed = 0
    while (path := pack / f"{SHARD.format(len(names))}.json").is_file():
        found = list(itertools.zip_longest(*read_shard(path)))  # earlier versions wrote no fingerprints
        if found != todo[packed : packed + len(found)]:
            break
        names.append(path.stem)
        packed += len(found)
    return names, packed


def write_shard(pack: Path, name: str, root: Path, todo: list[tuple[Frames, str]], full: float, bar: tqdm) -> int:
    """Write one shard from the first of `todo` until it has `full` bytes. Returns its number of sequences.

    Raises InputError if the images change meanwhile.
    """
    places: list[tuple[int, int]] = []
    written = 0
    with atomic_path(pack / f"{name}.tar") as temporary, tarfile.open(temporary, "w") as tar:
        for frames, _ in todo:
            for path, data in frames.read(root, range(frames.count)):
                info = tarfile.TarInfo(Path(path).relative_to(root).as_posix())
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                places.append((tar.offset - padded, len(data)))
            bar.update(frames.count)
            written += 1
            if tar.offset >= full:
                break
    with atomic_path(pack / f"{name}.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(places, dtype=np.int64))
    for frames, mark in todo[:written]:
        if fingerprint(root, frames) != mark:
            raise InputError(f"{root}/{frames.folder} changed while it was packed; start again when that is done")
    rows = [[f.folder, f.prefix, f.digits, f.start, f.count, f.suffix] for f, _ in todo[:written]]
    write_json(pack / f"{name}.json", {"sequences": rows, "made_of": [mark for _, mark in todo[:written]]})
    return written


if __name__ == "__main__":
    run_main(main)
