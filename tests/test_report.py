"""The report: self-contained, its numbers recounted by hand, its pictures, and the training curves."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion import evaluate
from report import gallery
from report.sections import write_report
from saved.predictions import align, load_predictions
from saved.records import read_record
from utils import InputError

# a class name that must come out as text, whatever fonts are here
EVIL = "<script>alert(1)</script> & 'co' $x_{$ Tänz 跳舞 ᚠ"


def make_record(root: Path, classes: int, per_class: int, hostile: bool = False) -> tuple[np.ndarray, dict]:
    """spatial/, motion/ and rgb/ under root: (labels, {stream: (videos, classes) logits}), videos sorted by name."""
    rng = np.random.default_rng(classes)
    names = [f"Class{c:03d}" for c in range(classes)]
    if hostile:
        names[1] = EVIL
    keys = [f"Class{c:03d}/v{i:02d}" for c in range(classes) for i in range(per_class)]
    labels = np.repeat(np.arange(classes), per_class)
    logits = {}
    for stream, size in (("spatial", 1.0), ("motion", 3.0)):
        logits[stream] = (size * (1.3 * np.eye(classes)[labels] + rng.normal(0, 1, (len(keys), classes)))).astype("f4")
        folder = root / stream
        folder.mkdir(parents=True)
        content = dict(zip(keys, logits[stream], strict=True))
        (folder / f"{stream}_video_preds.pickle").write_bytes(pickle.dumps(content, protocol=4))
        about = {
            "format": 1, "stream": stream, "dataset": "own", "split": "1", "class_names": names,
            "labels": dict(zip(keys, labels.tolist(), strict=True)),
            "checkpoint": {"name": "model_best.pth.tar", "epoch": 3, "weights_sha256": "00"},
            "frames": {"root": str(root / "rgb"), "folders": {key: key for key in keys}},
        }  # fmt: skip
        (folder / "predictions.json").write_text(json.dumps(about))
    for key in keys[::2]:  # every second video has its frames on disk
        (root / "rgb" / key).mkdir(parents=True)
        for k in range(1, 4):
            Image.new("RGB", (64, 48), (80 * k, 20, 20)).save(root / "rgb" / key / f"frame{k:06d}.jpg")
    return labels, logits


def write_curves(folder: Path, prefix: str, epochs: int) -> None:
    for phase in ("train", "test"):
        rows = [f"{e},0.1,0.01,{2 / (e + 1)},{30 + e},{80},0.001" for e in range(epochs)]
        text = "\n".join(["Epoch,Batch Time,Data Time,Loss,Prec@1,Prec@5,lr", *rows]) + "\n"
        (folder / f"{prefix}_{phase}.csv").write_text(text)


def fuse(root: Path, *streams: str) -> str:
    """Write the report of some streams in this very process; returns the page."""
    outcome = evaluate(align([load_predictions(root / stream) for stream in streams]))
    return write_report(outcome, root / "out", "made up").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags with what they point to, and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def small(tmp_path_factory, run):
    """A report on three classes, one of them with a hostile name, with curves of both streams."""
    root = tmp_path_factory.mktemp("small")
    labels, logits = make_record(root, 3, 20, hostile=True)
    write_curves(root / "spatial", "rgb", 4)
    write_curves(root / "motion", "opf", 5)
    paths = ("--spatial", root / "spatial", "--motion", root / "motion")
    return root, labels, logits, run("fusion.py", *paths, "--output", root / "out")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_needs_nothing_but_itself(small) -> None:
    root, *_, process = small
    assert str(root / "out/report.html") in process.stdout
    assert process.stderr == ""  # no warning of fonts, once or often
    text = (root / "out/report.html").read_text(encoding="utf-8")
    page = Reader(text)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert {source.split(",")[0] for source in images} == {"data:image/jpeg;base64", "data:image/svg+xml;base64"}
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert not {"link", "iframe", "object", "image"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert "url(" not in text and "@import" not in text
    assert EVIL in page.text
    assert "<script>alert" not in text
    assert not list((root / "out").glob(".*"))  # no temporary file is left


def test_every_link_leads_to_something_in_the_page_or_beside_it(small) -> None:
    root, *_ = small
    page = Reader((root / "out/report.html").read_text(encoding="utf-8"))
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    for attributes in links:
        target = attributes["href"]
        assert target[1:] in anchors if target[0] == "#" else (root / "out" / target).is_file(), target
        assert "target" not in attributes  # no new window
    words = "".join(ElementTree.fromstring((root / "out/per_class.svg").read_text(encoding="utf-8")).itertext())
    assert EVIL[:15] in words and EVIL[-14:] in words  # text, not outlines; a long name without its middle
    headings = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert {attributes["href"][1:] for attributes in links} >= headings


def test_the_page_shows_the_figures_of_results_json(small) -> None:
    root, *_ = small
    results = json.loads((root / "out/results.json").read_text())
    shown = Reader((root / "out/report.html").read_text(encoding="utf-8")).text
    for row in ("spatial", "motion", "fusion", "std"):
        assert f"{results[row]['top1']:.2f}" in shown
    assert "Training" in shown
    assert "epoch 3" in shown
    assert "top-5" not in shown  # of three classes
    assert "python " in shown.split("How this was made")[-1]
    assert f"numpy {np.__version__}" in shown
    assert "is not recorded" in shown  # how the epoch was chosen


def test_the_tables_are_what_a_recount_gives(small) -> None:
    root, labels, logits, _ = small
    fused = (logits["spatial"].astype(float) + logits["motion"]) / 2
    guess = {"spatial": logits["spatial"].argmax(1), "motion": logits["motion"].argmax(1), "fusion": fused.argmax(1)}
    better = max(("spatial", "motion"), key=lambda name: (guess[name] == labels).mean())

    rows = read_csv(root / "out/per_class.csv")
    names = ["Class000", EVIL, "Class002"]
    assert {row["class"] for row in rows} == set(names)
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    for row in rows:
        label = names.index(row["class"])
        for name, guesses in guess.items():
            share = 100 * np.mean(guesses[labels == label] == label)
            assert float(row[name]) == pytest.approx(share, abs=1e-3)
        assert float(row["gain"]) == pytest.approx(float(row["fusion"]) - float(row[better]), abs=2e-4)

    matrix = read_csv(root / "out/confusion.csv")
    for true in range(3):
        for guessed in range(3):
            expected = sum(1 for y, g in zip(labels, guess["fusion"], strict=True) if (y, g) == (true, guessed))
            assert int(matrix[true][names[guessed]]) == expected

    pairs = read_csv(root / "out/confused_pairs.csv")
    counts = [int(row["videos"]) for row in pairs]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == int((guess["fusion"] != labels).sum())
    assert all(row["true"] != row["guessed"] for row in pairs)

    right = {name: guesses == labels for name, guesses in guess.items()}
    one = right["spatial"] != right["motion"]
    shown = Reader((root / "out/report.html").read_text(encoding="utf-8")).text
    assert f"fusion is right on {(one & right['fusion']).sum()} of {one.sum()} videos" in shown
    assert f"would reach {100 * (right['spatial'] | right['motion']).mean():.2f} %" in shown


# --- pictures and mistakes -----------------------------------------------------------------------------


def test_mistakes_by_kind_with_every_streams_guesses_and_their_frames(small) -> None:
    root, labels, logits, _ = small
    guesses = (logits["spatial"].astype(float) + logits["motion"]).argmax(1)
    names = ["Class000", EVIL, "Class002"]
    text = (root / "out/report.html").read_text(encoding="utf-8")
    kinds = {(y, g) for y, g in zip(labels.tolist(), guesses.tolist(), strict=True) if y != g}
    assert len(kinds) > 2 and set(re.findall(r'<details id="c(\d-\d)">', text)) == {f"{y}-{g}" for y, g in kinds}
    for true, guess in kinds:
        part = re.search(rf'<details id="c{true}-{guess}">(.*?)</details>', text, flags=re.DOTALL)[1]
        expected = [f"Class{true:03d}/v{i % 20:02d}" for i in np.flatnonzero((labels == true) & (guesses == guess))]
        cards = re.findall(r'<div class="card".*?</table>', part, flags=re.DOTALL)
        found = [re.search(r"Class\d{3}/v\d\d", Reader(card).text)[0] for card in cards]
        assert sorted(found) == sorted(expected)
        for card, video in zip(cards, found, strict=True):
            assert (f'alt="frames of {video}"' in card) == (int(video[-2:]) % 2 == 0)  # where there are any
            rows = {tr.text.split()[0]: tr.text for tr in map(Reader, card.split("<tr>")[1:])}
            assert list(rows) == ["spatial", "motion", "fusion"]
            for stream in ("spatial", "motion"):
                row = true * 20 + int(video[-2:])
                chances = np.exp(logits[stream][row]) / np.exp(logits[stream][row]).sum()
                first = rows[stream].split("%")[0].split(maxsplit=1)[1]
                assert first == f"{names[int(chances.argmax())]} {100 * chances.max():.0f} "


def test_one_stream_of_two_inputs_with_look_alikes_shows_all_of_them(tmp_path: Path) -> None:
    """A motion stream on grey differences and flow, as run.py's: frames, flow and pairs are shown of it alone."""
    make_record(tmp_path, 3, 6)
    rng = np.random.default_rng(0)
    for key in (f"Class{c:03d}/v{i:02d}" for c in range(3) for i in range(6)):
        for channel in "uv":
            folder = tmp_path / "flow" / channel / key
            folder.mkdir(parents=True)
            for k in (1, 2):
                Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8)).save(folder / f"frame{k:06d}.jpg")
    path = tmp_path / "motion/predictions.json"
    about = json.loads(path.read_text())
    pair = {"test": "Class001/v00", "training": "Class001/v02", "similarity": 0.98765}
    alike = {"accuracy": 97.9, "apart": 45.1, "warns": True, "pairs": [pair], "shared": 1.0}
    about |= {"frames": {**about["frames"], "more": [str(tmp_path / "flow")]}, "look_alikes": alike,
              "checkpoint": {"name": "checkpoint.pth.tar", "epoch": -1}}  # fmt: skip
    path.write_text(json.dumps(about))
    text = fuse(tmp_path, "motion")
    shown = Reader(text).text
    assert "Kept apart, accuracy is 45 %" in shown and "similarity 0.99" in shown
    assert "test: Class001/v00" in shown and "training: Class001/v02" in shown
    wrong = text.count('<div class="card" id="v')
    assert wrong > 2 and text.count('alt="optical flow of ') == wrong
    body = Reader(text.split("<main>")[1].split('id="s-made"')[0]).text
    assert "Motion gets" in body and not re.search(r"\b[Ff]usion\b", body)
    assert "epoch" not in body  # a head has none


def test_how_the_epoch_was_chosen_and_a_perfect_result(tmp_path: Path) -> None:
    make_record(tmp_path, 2, 4)
    for stream, chosen in (("spatial", "test"), ("motion", "val")):
        path = tmp_path / stream / "predictions.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chosen_by": chosen}))
        path = tmp_path / stream / f"{stream}_video_preds.pickle"
        content = {key: np.eye(2, dtype=np.float32)[int(key[5:8])] for key in pickle.loads(path.read_bytes())}
        path.write_bytes(pickle.dumps(content, protocol=4))
    shown = Reader(fuse(tmp_path, "spatial", "motion")).text
    notes = shown.split("mean class")[0]
    assert "spatial was chosen by the accuracy on these same" in notes and "motion was chosen on videos held" in notes
    assert "Fusion makes no mistake" in shown and "Fusion gets every video right" in shown


def test_a_hundred_classes_have_room(tmp_path: Path) -> None:
    make_record(tmp_path, 101, 1)
    write_curves(tmp_path / "spatial", "rgb", 0)  # a record of a run that was stopped at once
    text = fuse(tmp_path, "spatial", "motion")
    (least,) = re.findall(r'--least: (\d+)px; [^<]*<img src="[^"]*" alt="Confusion', text)
    assert int(least) > 101 * 10  # pixels of a class
    assert not list((tmp_path / "out").glob("curves*"))


def test_dark_frames_are_brightened_and_flow_has_a_colour_for_each_direction(tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = tmp_path / "rgb/a/b"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 48), 5).point(lambda v: v // 12).convert("RGB").save(folder / f"frame{number:06d}.jpg")
    index = gallery.index_frames(tmp_path / "rgb", "rgb")
    (picture,) = gallery.see("a/b", index, None, "film.mp4").pictures
    assert picture.under == "frames brightened"
    for name in ("missing", "../outside"):
        assert not gallery.see(name, index, None, None).pictures

    still, right = (np.full((2, 8, 8), 128, np.uint8) for _ in range(2))
    right[0] = 250
    assert gallery.flow_colours(still).min() > 230  # white
    red, green, blue = gallery.flow_colours(right)[0, 0]
    assert red > 200 and max(green, blue) < 30  # hue 0 is the direction of x


# --- training curves -----------------------------------------------------------------------------------


def test_a_broken_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rgb_train.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a training record"):
        read_record(path)


def test_an_epoch_written_twice_counts_once_with_its_last_row(tmp_path: Path) -> None:
    path = tmp_path / "rgb_train.csv"
    path.write_text("Epoch,Loss,Prec@1\n0,3,10\n1,2,20\n1,1.5,25\n")  # no lr, as in the original's test record
    table = read_record(path)
    assert table.index.tolist() == [0, 1]
    assert table["Loss"].tolist() == [3, 1.5]
    assert all(math.isnan(value) for value in table["lr"])
