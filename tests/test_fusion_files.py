"""Scores that other people's programs saved: .npz, .npy and .csv, and what hostile or broken ones get."""

import csv
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prediction_files import CLASSES, write

from dataloader.names import UCF101_CLASSES
from saved.predictions import align, load_predictions
from utils import InputError

SCORES = np.random.default_rng(0).normal(0, 1, (4, 3)).astype("f4")
NAMES = ["Archery/a.avi", "data/Hammering/b.b.mp4", "HammerThrow/c", "Archery/d"]
KEYS = ["Archery/a", "Hammering/b.b", "HammerThrow/c", "Archery/d"]
LABELS = [0, 1, 2, 0]


def objects(items: list) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def pairs() -> np.ndarray:
    """(videos, 2) of (1, classes) scores and a label: what CoViAR's and dmc-net's test.py saves."""
    array = np.empty((4, 2), object)
    for row, (scores, label) in enumerate(zip(SCORES, LABELS, strict=True)):
        array[row, 0], array[row, 1] = scores[None], label
    return array


def structured() -> np.ndarray:
    rows = list(zip(NAMES, LABELS, SCORES, strict=True))
    return np.array(rows, dtype=[("video", "U40"), ("label", "i8"), ("scores", "f4", (3,))])


def check(path: Path, named: bool = False, rtol: float = 0) -> None:
    found = load_predictions(path)
    assert list(found.logits) == KEYS and found.labels == dict(zip(KEYS, LABELS, strict=True))
    np.testing.assert_allclose(np.stack(list(found.logits.values())), SCORES, rtol=rtol)
    assert found.class_names == (CLASSES if named else [])
    assert found.stream == path.stem


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"scores": SCORES, "labels": LABELS, "names": NAMES}, False),
        ({"logits": SCORES.astype(float), "label": np.float32(LABELS), "videos": np.array(NAMES, "S")}, False),
        ({"scores": pairs(), "labels": LABELS, "names": NAMES}, False),
        ({"scores": pairs(), "names": objects(NAMES)}, False),
        ({"scores": SCORES[:, None], "labels": objects(LABELS), "names": NAMES, "class_names": CLASSES}, True),
        ({"preds": SCORES, "y": [CLASSES[i] for i in LABELS], "video": NAMES, "classes": objects(CLASSES)}, True),
    ],
)
def test_npz_with_scores_names_and_labels(tmp_path: Path, arrays: dict, named: bool) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "theirs.npz", **arrays)
        check(tmp_path / "theirs.npz", named)


def test_npy_with_named_fields_or_a_dict(tmp_path: Path) -> None:
    for content in (structured(), {"scores": SCORES, "labels": LABELS, "names": NAMES}):
        np.save(tmp_path / "theirs.npy", content)
        check(tmp_path / "theirs.npy")
    names = ["YoYo_g01_c01", "v_Archery_g02_c01.avi"]  # labels by UCF101's names, as in a pickle
    np.save(tmp_path / "plain.npy", {name: np.arange(101, dtype="f4") for name in names})
    assert load_predictions(tmp_path / "plain.npy").labels == {"YoYo_g01_c01": 100, "Archery_g02_c01": 2}


def test_csv_with_a_first_line_of_names(tmp_path: Path) -> None:
    for head, named, labels in (
        (["video", "label", *CLASSES], True, LABELS),
        (["name", "label", "class_0", "class_1", "class_2"], False, LABELS),
        (["Filename", "class", *CLASSES], True, [CLASSES[i] for i in LABELS]),
    ):
        with open(tmp_path / "theirs.csv", "w", newline="", encoding="utf-8-sig") as file:
            rows = [[name, y, *map(float, row)] for name, y, row in zip(NAMES, labels, SCORES, strict=True)]
            csv.writer(file).writerows([head, *rows])
        check(tmp_path / "theirs.csv", named, rtol=1e-6)


@pytest.mark.parametrize("first", [0, 1, 7])
def test_numbered_columns_stand_in_any_order(tmp_path: Path, first: int) -> None:
    """Twelve classes, whose columns text sorts as 0, 1, 10, 11, 2: each video scores its own class highest."""
    columns = sorted(range(first, first + 12), key=str)
    rows = [[f"v{label}", label, *(float(column == first + label) for column in columns)] for label in range(12)]
    with open(tmp_path / "theirs.csv", "w", newline="") as file:
        csv.writer(file).writerows([["video", "label", *(f"class_{column}" for column in columns)], *rows])
    found = load_predictions(tmp_path / "theirs.csv")
    right = sum(int(found.logits[video].argmax()) == label for video, label in found.labels.items())
    assert right == (12 if first < 7 else sum(column == first + at for at, column in enumerate(columns)))
    assert align([found]).title == "12 classes"
    assert found.class_names == ([f"class_{column}" for column in columns] if first == 7 else [])  # 7 and on: names


def test_theirs_beside_ours_takes_our_class_names(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", "spatial", dict(zip(KEYS, SCORES, strict=True)),
                 dict(zip(KEYS, LABELS, strict=True)))  # fmt: skip
    np.savez(tmp_path / "theirs.npz", scores=2 * SCORES, labels=LABELS, names=NAMES)
    theirs = load_predictions(tmp_path / "theirs.npz")
    for both in ([theirs, load_predictions(ours)], [load_predictions(ours), theirs]):
        test_set = align(both)
        assert test_set.class_names == CLASSES
        np.testing.assert_allclose(test_set.streams["theirs"], 2 * test_set.streams["spatial"])
    assert align([theirs, theirs]).class_names == ["class 0", "class 1", "class 2"]
    np.savez(tmp_path / "other.npz", scores=SCORES, labels=[0, 2, 1, 0], names=NAMES)
    with pytest.raises(InputError, match=r"label differently: HammerThrow/c, Hammering/b\.b"):
        align([load_predictions(tmp_path / "other.npz"), load_predictions(ours)])


def test_ucf101s_names_tell_of_another_order_of_classes(tmp_path: Path) -> None:
    names = ["Hammering/v_Hammering_g01_c01.avi", "HammerThrow/v_HammerThrow_g01_c01.avi"]
    scores = np.arange(202.0).reshape(2, 101)
    np.savez(tmp_path / "theirs.npz", scores=scores, labels=[34, 35], names=names)
    found = load_predictions(tmp_path / "theirs.npz")
    assert found.labels == {"Hammering_g01_c01": 34, "HammerThrow_g01_c01": 35}
    assert found.class_names == list(UCF101_CLASSES)
    np.savez(tmp_path / "theirs.npz", scores=scores, labels=[35, 34], names=names)  # sorted as ASCII
    with pytest.raises(InputError, match="another order of classes"):
        load_predictions(tmp_path / "theirs.npz")


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_objects_are_read_without_running_anything(tmp_path: Path) -> None:
    def header(kind: str, size: int) -> bytes:
        out = io.BytesIO()
        np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": (size,)})
        return out.getvalue()

    trap = Trap(tmp_path / "ran")
    np.savez(tmp_path / "a.npz", scores=objects([SCORES[0], trap]), labels=LABELS[:2], names=NAMES[:2])
    np.save(tmp_path / "b.npy", {"a": trap})
    loop: list = []
    loop.append(loop)
    content = {"c.npy": header("<f8", 1 << 40), "d.npy": header("|O", 1) + pickle.dumps(objects(loop)),
               "e.npz": b"<html>not found</html>", "f.npy": b""}  # fmt: skip
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr("scores.npy", b"\x93NUMPY\x01\x00\xff\xff{")
    for name in (*content, "a.npz", "b.npy", "g.npz"):
        with pytest.raises(InputError, match=name) as error:
            load_predictions(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": SCORES, "names": NAMES}, "no scores among its arrays \\(x, names\\)"),
        ({"scores": SCORES}, "no names among"),
        ({"scores": SCORES, "labels": LABELS[:3], "names": NAMES}, "3 labels for scores of 4 videos"),
        ({"scores": SCORES, "labels": [1, 2, 3, 1], "names": NAMES}, "labels HammerThrow/c 3.*count from 0"),
        ({"scores": SCORES, "labels": [0.5, 1, 2, 0], "names": NAMES}, "neither whole numbers"),
        ({"scores": SCORES, "labels": ["x"] * 4, "names": NAMES}, "no class_names"),
        ({"scores": SCORES, "labels": LABELS, "names": [*NAMES[:3], NAMES[0]]}, "Archery/a twice"),
        ({"scores": SCORES, "labels": LABELS, "names": [1, 2, 3, 4]}, "names are no text"),
        ({"scores": SCORES * np.nan, "labels": LABELS, "names": NAMES}, "not finite"),
        ({"scores": objects([[1, 2], [1], [2], [3]]), "labels": LABELS, "names": NAMES}, "several lengths"),
        ({"scores": np.array(["a"] * 4), "labels": LABELS, "names": NAMES}, "no numbers"),
        ({"scores": SCORES, "names": NAMES}, "3 classes, but UCF101 has 101; .* the predictions.json"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "theirs.npz", **arrays)
    with pytest.raises(InputError, match=words) as error:
        load_predictions(tmp_path / "theirs.npz")
    assert "\n" not in str(error.value) and str(tmp_path / "theirs.npz") in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "video,label,x,y\na,0,1\n", "video,label,x,y\na,0,1,5,2,25\nb,1,0,5,3,25\n",
     "video,label,x,y\n", "video\na\n"],
)  # fmt: skip
def test_a_broken_table_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(InputError, match="theirs.csv"):
        load_predictions(tmp_path / "theirs.csv")
    np.save(tmp_path / "bare.npy", SCORES)
    with pytest.raises(InputError, match="without names"):
        load_predictions(tmp_path / "bare.npy")
