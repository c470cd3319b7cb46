"""Shared fixtures: the optional test data, and a way to run scripts as a user does."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of two threads on two cores wait for one another

import numpy as np
import pytest
from PIL import Image
from prediction_files import make_streams, write
from scripts import ROOT, patched, run_script

sys.path.insert(0, str(ROOT))


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu":  # bits are a CPU's, on every machine: a GPU is for the tests made for it
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files that run scripts most often take longest: they go first, so that no process is left alone with one.
    runs = Counter(item.path for item in items if "run" in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: -runs[item.path])
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or not run by -m gpu")
        for item in gpu:
            item.add_marker(absent)


def pytest_sessionfinish() -> None:
    # An exception that pytest holds keeps a loader alive, whose workers ignore the SIGTERM that Python sends at exit.
    from utils import end_children

    end_children()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data; tests that need it are skipped where it is absent."""
    folder = (ROOT / os.environ.get("TWO_STREAM_SHARED", "../shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder} (TWO_STREAM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def run():
    """run("spatial_cnn.py", "--epochs", 1, ..., code=0) -> the finished process, its output as text.

    The exit code is checked, but for None, and an error of code 2 must be one plain line.
    """

    def run(script: str, *arguments: object, code: int | None = 0, **options):
        process = run_script(script, *arguments, **options)
        assert code in (None, process.returncode), f"{process.returncode}\n{process.stdout}\n{process.stderr}"
        if code == 2:
            assert "Traceback" not in process.stderr, process.stderr
            assert "error: " in process.stderr, process.stderr
        return process

    return run


# Runs a script in this very process, which at a chosen moment sends a signal to itself, its group or a loader.
KILLER = """
import multiprocessing, os, pathlib, signal, time
moment, count, number, whom = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
del sys.argv[1:5]

def strike(at):
    global count
    count -= at == moment
    if count or at != moment:
        return
    if whom == "group":
        os.killpg(os.getpgrp(), number)
    else:
        os.kill(os.getpid() if whom == "self" else multiprocessing.active_children()[0].pid, number)
    for _ in range(100):  # until it arrives, in the middle of Python code
        time.sleep(0.01 * (whom != "self"))

import numpy
from engine import training as engine
save = numpy.save
def save_and_strike(*args, **kwargs):
    save(*args, **kwargs)
    strike("in a row of features")
numpy.save = save_and_strike
step, replace, write = engine.train_step, os.replace, pathlib.Path.write_bytes

def train_step(*args, **kwargs):
    loss = step(*args, **kwargs)
    strike("in a batch")
    return loss

def replace_and_strike(source, target):
    if str(target).endswith("checkpoint.pth.tar"):
        strike("before the checkpoint counts")
    replace(source, target)
    for name in ("checkpoint.pth.tar", "frame_preds.pickle", "video_preds.pickle", "test.csv"):
        if str(target).endswith(name):
            strike("after " + name)

def write_half(path, data):
    if "checkpoint.pth.tar" in path.name and moment == "in the checkpoint's write":
        write(path, bytes(data)[: len(data) // 2])
        strike("in the checkpoint's write")
    return write(path, data)

engine.train_step, os.replace, pathlib.Path.write_bytes = train_step, replace_and_strike, write_half
"""


@pytest.fixture(scope="session")
def strike(run, tmp_path_factory):
    """strike(moment, count, signal, script, ...): a run that ends itself at the count-th such moment."""
    script = patched(tmp_path_factory.mktemp("killer"), KILLER)

    def strike(moment, count, number, *arguments, whom="self"):
        return run(script, moment, count, int(number), whom, *arguments, code=None)

    return strike


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Folders spatial/ and motion/ with the predictions of two streams of one made-up test."""
    spatial, motion, labels = make_streams()
    write(tmp_path / "spatial", "spatial", spatial, labels)
    write(tmp_path / "motion", "motion", motion, labels)
    return tmp_path


CLASSES = ("Archery", "HammerThrow", "Hammering")  # in UCF101's list Hammering comes first


def write_images(folder: Path, prefix: str, count: int, size: tuple[int, int], mode: str, seed: int) -> None:
    """`count` JPEGs numbered from 1, each a smooth random picture of its own. size is (width, height)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        small = rng.integers(0, 256, (5, 6) if mode == "L" else (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{prefix}{number:06d}.jpg", quality=90)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rgb/ and flow/ of 12 videos of UCF101's names: per class groups 1 and 2 (split 1's test), 8 and 22 (training)."""
    root = tmp_path_factory.mktemp("tiny")
    for c, class_name in enumerate(CLASSES):
        for group in (1, 2, 8, 22):
            name, seed = f"v_{class_name}_g{group:02d}_c01", 100 * c + group
            count = 12 + 3 * c + group % 3
            write_images(root / "rgb" / name, "frame", count, (86, 72), "RGB", seed)
            write_images(root / "flow/u" / name, "frame", count - 1, (86, 72), "L", seed + 50)
            write_images(root / "flow/v" / name, "frame", count - 1, (86, 72), "L", seed + 70)
    return root


# A ResNet of 11 million parameters, and one of half a million, whose run takes a quarter of the time.
SMALL = ("--ucf-list", "none", "--arch", "resnet18", "--weights", "none", "--size", 64, "--batch-size", 3,
         "--test-samples", 3, "--workers", 1)  # fmt: skip
TINY = tuple("timm:test_resnet" if word == "resnet18" else word for word in SMALL)
