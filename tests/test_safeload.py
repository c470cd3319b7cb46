"""Reading pickles and checkpoints: data of every age comes back, and nothing else gets anywhere."""

import json
import pickle
import random
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import hostile_files
import numpy as np
import pytest
import python2_files
import torch

from saved.safe import load_checkpoint, load_pickle
from utils import InputError

ROOT = Path(__file__).resolve().parents[1]


# --- data comes back ---------------------------------------------------------------------------------------


def assert_same(found, expected) -> None:
    """Equal in value, type and order, all the way down."""
    assert repr(parts(found)) == repr(parts(expected))  # NaN's repr equals itself


def parts(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype.newbyteorder("="), value.shape, value.tolist()
    if isinstance(value, torch.Tensor):
        return value.dtype, value.device, value.shape, value.tolist()
    if isinstance(value, dict):
        return type(value), [(key, parts(item)) for key, item in value.items()]
    return (type(value), [parts(item) for item in value]) if isinstance(value, list | tuple) else (type(value), value)


DATA = {
    "float32": np.arange(6, dtype="f4").reshape(2, 3),
    "big endian": np.arange(6, dtype=">f8").reshape(3, 2),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "empty": np.zeros((0, 101), "f4"),
    "scalar array": np.array(7, "i8"),
    "booleans": np.array([True, False]),
    "bytes": np.arange(256, dtype="u1"),
    "half": np.array([1.5, np.nan], "f2"),
    "complex": np.array([1 + 2j], "c8"),
    "numpy number": np.float32(1.25),
    "numbers": [0, 1, 255, 256, 65536, -1, -(2**31), 2**31, 2**63, -(2**70), 1.5, -0.0, float("inf"), float("nan")],
    "constants": (None, True, False, (), [], {}),
    "tuples": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "strings": ["", "HandstandPushups_g01_c01", "é", "日本", "\n\t\\'\"", "a" * 300, "\x00"],
    "raw": [b"", b"\x00\xff", b"b" * 300],
    5: {"nested": {"deeper": [1, [2, [3]]]}},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_python_3(tmp_path, protocol):
    shared = np.arange(3.0)
    content = {**DATA, "same": [shared, shared], "ordered": OrderedDict(b=1, a=2), "count": Counter("aab")}
    content |= {"set": {1, 2, 3}} if protocol >= 4 else {}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol))
    assert_same(load_pickle(tmp_path / "x"), content)


@pytest.mark.parametrize("protocol", [0, 2])
def test_predictions_of_python_2(tmp_path, protocol):
    generator = np.random.default_rng(0)
    arrays = {f"ApplyEyeMakeup_g{i:02}_c01": generator.normal(0, 50, (2, 3)).astype("f4") for i in range(300)}
    data = python2_files.predictions(arrays, protocol)
    assert_same(pickle.loads(data, encoding="latin1"), arrays)  # the file is what it claims to be
    (tmp_path / "x").write_bytes(data)
    assert_same(load_pickle(tmp_path / "x"), arrays)


def training_state() -> dict:
    """What a training saves: weights, optimizer, schedule, generators."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    base = torch.arange(12.0)
    return {
        "epoch": 3, "best_prec1": 81.9, "class_names": ["Hammering", "HammerThrow"], "none": None,
        "state_dict": model.state_dict(), "parameter": torch.nn.Parameter(torch.ones(2)),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler": {"milestones": Counter([3, 5, 5]), "last_epoch": 3}, "random": random.Random(3).getstate(),
        "rng": torch.get_rng_state(), "half": torch.ones(3).half(), "bfloat16": torch.ones(2).bfloat16(),
        "long": torch.tensor(2**40), "bool": torch.tensor([True]), "empty": torch.zeros(0, 5),
        "views": [base, base[3:7], base.view(3, 4).t(), base.view(3, 4)[:, 1]], "ordered": OrderedDict(a=1),
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_this_torch(tmp_path, zipped):
    content = training_state()
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(tmp_path / "x")
    assert_same(found, content)
    found["views"][0].fill_(7)
    assert found["views"][1].eq(7).all()  # views of one storage stay views of one storage


def test_checkpoint_of_python_2(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {f"layer1.{i}.weight": generator.normal(size=(4, 3, 2, 1)).astype("f4") for i in range(300)}
    arrays["steps"], arrays["none"] = np.array([3, 2**40]), np.zeros((0, 2), "f4")
    weights = OrderedDict((name, python2_files.Tensor(array)) for name, array in arrays.items())
    rest = {"epoch": 3, "best_prec1": 80.5, "negative": -5, "hooks": OrderedDict()}
    (tmp_path / "without").write_bytes(python2_files.checkpoint({"state_dict": weights, **rest}))
    expected = {"state_dict": OrderedDict((name, torch.from_numpy(array)) for name, array in arrays.items()), **rest}
    assert_same(torch.load(tmp_path / "without", "cpu", weights_only=True), expected)
    assert_same(load_checkpoint(tmp_path / "without"), expected)

    def optimizer(momentum: object) -> dict:
        ids = [140_000_000_000_000, 140_000_000_000_001]  # which torch's weights-only loader cannot read
        return {"state": {ids[0]: {"momentum_buffer": momentum}}, "param_groups": [{"lr": 0.1, "params": ids}]}

    data = python2_files.checkpoint({"optimizer": optimizer(python2_files.Tensor(np.ones(3))), "note": "x" * 300})
    assert b"I140000000000000\n" in data and b"T\x2c\x01\x00\x00xxx" in data and b"U\x07storage" in data
    (tmp_path / "with").write_bytes(data)
    assert_same(load_checkpoint(tmp_path / "with"), {"optimizer": optimizer(torch.ones(3)), "note": "x" * 300})


# --- nothing else gets anywhere ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What fuzz_loaders.py says of each hostile file, which it reads before some hundred mutated ones.

    {group: {name of the file: message, or None where it was read}}; and where the sentinels would be.
    """
    folder, sentinels = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("sentinels")
    pickles = {f"refused;{name}": program for name, program in hostile_files.refused().items()}
    for index, name in enumerate(hostile_files.running("true")):
        command = f"echo x > {(sentinels / str(index)).as_posix()}"
        pickles[f"running;{name}"] = hostile_files.running(command)[name]
    for name, program in pickles.items():
        (folder / f"{name}.pickle").write_bytes(program)
        (folder / f"{name}.zip.pth").write_bytes(hostile_files.zip_checkpoint(program))
        (folder / f"{name}.old.pth").write_bytes(hostile_files.legacy_checkpoint(program))
    for name, data in hostile_files.bad_checkpoints().items():
        (folder / f"lying;{name}.pth").write_bytes(data)
    command = [sys.executable, str(ROOT / "tests/fuzz_loaders.py"), "300", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    assert "300 inputs: nothing but data and refusals" in process.stdout
    said = json.loads(process.stdout.splitlines()[-1])
    groups = {group: {name.partition(";")[2]: message for name, message in said.items() if name.startswith(group)}
              for group in ("running", "refused", "lying")}  # fmt: skip
    return groups, folder, sentinels


def assert_all_refused(said: dict[str, str | None], count: int) -> None:
    assert len(said) >= count
    for name, message in said.items():
        assert message is not None, f"{name} was read"
        assert name in message and "\n" not in message and message.isprintable() and len(message) < 600, message


UNSAFE = """
import pickle, sys
for path in sys.argv[1:]:
    try:
        pickle.load(open(path, "rb"))
    except Exception:
        pass
"""


def test_nothing_is_run(verdicts):
    """Each file would make a sentinel; Python's unpickler makes it, to prove that, and ours does not."""
    groups, folder, sentinels = verdicts
    names = list(hostile_files.running("true"))
    assert_all_refused(groups["running"], 3 * len(names))
    assert not list(sentinels.iterdir())

    paths = [str(folder / f"running;{name}.pickle") for name in names]
    subprocess.run([sys.executable, "-W", "ignore", "-c", UNSAFE, *paths], capture_output=True, timeout=120)
    harmless = [name for index, name in enumerate(names) if not (sentinels / str(index)).exists()]
    assert not harmless, "these files would not have run anything"


def test_impossible_pickles_are_refused(verdicts):
    assert_all_refused(verdicts[0]["refused"], 3 * len(hostile_files.refused()))


def test_lying_checkpoints_are_refused(verdicts):
    said = verdicts[0]["lying"]
    assert_all_refused(said, len(hostile_files.bad_checkpoints()))
    for name, words in {
        "web page": "web page", "LFS pointer": "git lfs pull", "legacy, whole model": "torch.nn.modules.linear.Linear",
        "zip, flipped bit": "checksums do not match", "zip, a list": "a list instead of a dict",
        "zip, bomb": "not as torch.save",
        "legacy, 100 GB view of nothing": "in 16 bytes", "zip, wrong type": "more numbers than it holds",
    }.items():  # fmt: skip
        assert words in said[f"{name}.pth"], said[f"{name}.pth"]


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty").touch()
    for read in (load_pickle, load_checkpoint):
        for name, words in (("absent", "No such file"), ("empty", "is empty"), (".", "cannot open")):
            with pytest.raises(InputError, match=words):
                read(tmp_path / name)


def test_text_of_the_file_cannot_reach_the_terminal(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x04\x8c\x0cos\x1b[31m\nhide\x8c\x01\x07\x93.")
    with pytest.raises(InputError) as caught:
        load_pickle(tmp_path / "x")
    assert str(caught.value).isprintable() and "os" in str(caught.value)
