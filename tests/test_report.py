"""The report: self-contained, its numbers recounted by hand, and its pictures."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from prediction_files import write
from sklearn.metrics import confusion_matrix
from video_files import make_video

from fusion import evaluate
from report import gallery, page
from report.outcome import text
from report.page import write_report
from saved.predictions import align, load_predictions

# a class name that must come out as text, whatever fonts are here
EVIL = "<script>alert(1)</script> & 'co' $x_{$ Tänz 跳舞 ᚠ"


def make_record(root: Path, names: list[str], per_class: int, chosen_by=(None, None), sure=1.3, **meta):
    """spatial/, motion/ and rgb/ under root: (labels, {stream: (videos, classes) logits}), videos sorted by name."""
    classes = len(names)
    rng = np.random.default_rng(classes)
    keys = [f"Class{c:03d}/v{i:02d}" for c in range(classes) for i in range(per_class)]
    labels = np.repeat(np.arange(classes), per_class)
    checkpoint = {"name": "model_best.pth.tar", "epoch": 3, "weights_sha256": "00"}
    about = {"class_names": names, "checkpoint": checkpoint,
             "frames": {"root": str(root / "rgb"), "folders": {key: key for key in keys},
                        "more": [str(root / "flow")]}}  # fmt: skip
    logits = {}
    for stream, size, chosen in zip(("spatial", "motion"), (1.0, 3.0), chosen_by, strict=True):
        noise = rng.normal(0, 1, (len(keys), classes))
        logits[stream] = (size * (sure * np.eye(classes)[labels] + noise)).astype("f4")
        rows = dict(zip(keys, logits[stream], strict=True))
        write(root / stream, stream, rows, dict(zip(keys, labels.tolist(), strict=True)),
              **{**about, **meta, "chosen_by": chosen})  # fmt: skip
    for key in keys[::2]:  # every second video has its frames on disk
        for folder, count, mode in ("rgb", 3, "RGB"), ("flow/u", 2, "L"), ("flow/v", 2, "L"):
            (root / folder / key).mkdir(parents=True)
            for k in range(1, count + 1):
                picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).convert(mode)
                picture.save(root / folder / key / f"frame{k:06d}.jpg")
    return labels, logits


def fuse(root: Path, *streams: str) -> str:
    """Write the report of some streams in this very process; returns the page."""
    outcome = evaluate(align([load_predictions(root / stream) for stream in streams]))
    (root / "out").mkdir(exist_ok=True)
    (root / "out/results.json").write_text(json.dumps(outcome.results))
    return write_report(outcome, root / "out", "made up").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags with what they point to, and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.handle_starttag = lambda tag, attrs: self.tags.append((tag, dict(attrs)))
        self.feed(text)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A report on three classes, one of them with a hostile name: (root, labels, logits, page)."""
    root = tmp_path_factory.mktemp("small")
    labels, logits = make_record(root, ["Class000", EVIL, "Class002"], 20)
    return root, labels, logits, fuse(root, "spatial", "motion")


def test_the_page_needs_nothing_but_itself(small) -> None:
    root, _, _, html = small
    read = Reader(html)
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert all(image["alt"] for image in images)
    assert {image["src"].split(";base64,")[0] for image in images} == {"data:image/jpeg", "data:image/svg+xml"}
    assert not {"link", "iframe", "object", "image", "script"} & {tag for tag, _ in read.tags}
    assert "url(" not in html and "@import" not in html and EVIL in read.text
    assert all((root / "out" / attributes["href"]).is_file() for tag, attributes in read.tags if tag == "a")
    words = "".join(ElementTree.fromstring((root / "out/confusion.svg").read_text(encoding="utf-8")).itertext())
    assert EVIL[:15] in words and EVIL[-14:] in words  # text, not outlines; a long name without its middle
    assert not list((root / "out").glob(".*"))  # no temporary file is left


def test_the_page_and_its_tables_are_what_a_recount_gives(small) -> None:
    root, labels, logits, html = small
    results, shown = json.loads((root / "out/results.json").read_text()), Reader(html).text
    for row in ("spatial", "motion", "fusion", "std"):
        assert f"{results[row]['top1']:.2f}" in shown
    assert "top-5" not in shown  # of three classes
    assert "epoch 3" in shown and "is not recorded" in shown  # how the epoch was chosen
    assert f"numpy {np.__version__}" in shown.split("How this was made")[-1]

    fused = (logits["spatial"].astype(float) + logits["motion"]) / 2
    guess = {"spatial": logits["spatial"].argmax(1), "motion": logits["motion"].argmax(1), "fusion": fused.argmax(1)}
    names = ["Class000", EVIL, "Class002"]
    table = pd.read_csv(root / "out/per_class.csv", index_col="class")
    assert set(table.index) == set(names) and table["fusion"].is_monotonic_increasing
    for label, row in enumerate(table.loc[names].to_dict("records")):
        for name, guesses in guess.items():
            share = 100 * np.mean(guesses[labels == label] == label)
            assert row[name] == pytest.approx(share, abs=1e-3) and f"{share:.1f}" in shown
    matrix = pd.read_csv(root / "out/confusion.csv", index_col="true class")
    assert list(matrix) == list(matrix.index) == names
    assert (matrix.to_numpy() == confusion_matrix(labels, guess["fusion"])).all()


def test_mistakes_by_kind_with_every_streams_guesses_and_their_pictures(small) -> None:
    _, labels, logits, text = small
    guesses = (logits["spatial"].astype(float) + logits["motion"]).argmax(1)
    names = ["Class000", EVIL, "Class002"]
    kinds = {(y, g) for y, g in zip(labels.tolist(), guesses.tolist(), strict=True) if y != g}
    parts = {}
    for part in re.findall(r"<details>(.*?)</details>", text, flags=re.DOTALL):
        title, _, count = Reader(part.partition("</summary>")[0]).text.rpartition(": ")
        parts[tuple(names.index(name) for name in title.split(" → "))] = part
        assert int(count.split()[0]) == part.count('<div class="card">')
    assert len(kinds) > 2 and set(parts) == kinds
    for (true, guess), part in parts.items():
        expected = [f"Class{true:03d}/v{i % 20:02d}" for i in np.flatnonzero((labels == true) & (guesses == guess))]
        cards = re.findall(r'<div class="card".*?</table>', part, flags=re.DOTALL)
        found = [re.search(r"Class\d{3}/v\d\d", Reader(card).text)[0] for card in cards]
        assert sorted(found) == sorted(expected)
        for card, video in zip(cards, found, strict=True):
            on_disk = int(video[-2:]) % 2 == 0
            assert (f'alt="frames of {video}"' in card) == (f'alt="optical flow of {video}"' in card) == on_disk
            rows = {tr.text.split()[0]: tr.text for tr in map(Reader, card.split("<tr>")[1:])}
            assert list(rows) == ["spatial", "motion", "fusion"]
            for stream in ("spatial", "motion"):
                row = true * 20 + int(video[-2:])
                chances = np.exp(logits[stream][row]) / np.exp(logits[stream][row]).sum()
                first = rows[stream].split("%")[0].split(maxsplit=1)[1]
                assert first == f"{names[int(chances.argmax())]} {100 * chances.max():.0f} "


def test_terminal_report_and_results_say_the_same_of_the_alarm_and_show_it_of_one_stream(tmp_path: Path) -> None:
    """A head on motion alone, as run.py's: it has no epoch."""
    pair = {"test": "Class001/v00", "training": "Class001/v02", "similarity": 0.98765}
    alike = {"accuracy": 97.9, "apart": 45.1, "warns": True, "pairs": [pair], "shared": 1.0}
    make_record(tmp_path, ["a", "b"], 6, look_alikes=alike, checkpoint={"name": "checkpoint.pth.tar", "epoch": -1})
    outcome = evaluate(align([load_predictions(tmp_path / "motion")]))
    shown = Reader(fuse(tmp_path, "motion").split("<main>")[1]).text
    (alarm,) = outcome.results["warnings"]
    assert "Kept apart, accuracy is 45 %" in alarm and "run.py VIDEOS --groups" in alarm and outcome.results["notes"]
    for line in (alarm, *outcome.results["notes"]):
        assert line[1:] in shown and line in text(outcome.results, "title")
    assert "similarity 0.99" in shown and "test: Class001/v00" in shown and "training: Class001/v02" in shown
    body = shown.split("How this was made")[0]
    assert "Motion gets" in body and not re.search(r"\b[Ff]usion\b", body) and "epoch" not in body


def test_how_the_epoch_was_chosen_and_a_perfect_result(tmp_path: Path) -> None:
    make_record(tmp_path, ["a", "b"], 4, ("test", "val"), sure=99)
    shown = Reader(fuse(tmp_path, "spatial", "motion")).text
    notes = shown.split("mean class")[0]
    assert "spatial was chosen by the accuracy on these same" in notes and "motion was chosen on videos held" in notes
    assert "Fusion gets every video right" in shown


def test_pictures_of_many_classes_of_flow_and_of_videos_that_are_not_there(tmp_path: Path, monkeypatch) -> None:
    make_record(tmp_path, ["a", "b", "c"], 2)
    monkeypatch.setattr(page, "WIDE", 2)
    assert '<figure class="broad">' in fuse(tmp_path, "spatial", "motion")
    index = gallery.index_frames(tmp_path / "rgb", "rgb")
    for name in ("missing", "../outside"):
        assert gallery.see(name, index, None, None).frames is None
    below = {"frames": {"root": str(tmp_path), "folders": {"Class000/v00": "flow/u/Class000/v00"}}}  # not in root/u
    motion = replace(load_predictions(tmp_path / "motion"), meta=below)
    assert gallery.look_up({"motion": motion}, ["Class000/v00"])["Class000/v00"].flow
    for number in range(1, 4):
        (tmp_path / "dark/a/b").mkdir(parents=True, exist_ok=True)
        noise = Image.effect_noise((64, 48), 60).point(lambda level: level // 12).convert("RGB")
        noise.save(tmp_path / f"dark/a/b/frame{number:06d}.jpg")
    dark = gallery.index_frames(tmp_path / "dark", "rgb")
    seen = gallery.see("a/b", dark, None, None)
    both = gallery.see("a/b", dark, None, str(make_video(tmp_path / "a.avi", 1)))  # a network's frames, a head's film
    assert both.frames == seen.frames and both.flow and not seen.flow
    strip = Image.open(io.BytesIO(base64.b64decode(str(seen.frames).partition(",")[2]))).convert("L")
    assert seen.brightened and np.asarray(strip)[:, :60].max() > 150  # of at most 21 in the files
    still, right = (np.full((2, 8, 8), 128, np.uint8) for _ in range(2))
    right[0] = 250
    assert gallery.flow_colours(still).min() > 230  # white
    red, green, blue = gallery.flow_colours(right)[0, 0]
    assert red > 200 and max(green, blue) < 30  # hue 0 is the direction of x
