"""The report: self-contained, its numbers recounted by hand, its pictures, and the training curves."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report import gallery, sections, tables

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


def fuse(run, root: Path, *more: object):
    return run("fusion.py", "--spatial", root / "spatial", "--motion", root / "motion", "--output", root / "out", *more)


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
    process = fuse(run, root)
    return root, labels, logits, process


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
    assert images
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") >= 8
    assert not {"link", "iframe", "object", "image"} & set(tags)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    addresses = re.findall(r"url\(([^)]*)\)", text)
    assert all(address.startswith("#") for address in addresses)  # what a figure cuts off at its frame
    assert "@import" not in text
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
    headings = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    assert {attributes["href"][1:] for attributes in links} >= headings


def test_figures_are_svg_whose_text_is_text(small) -> None:
    root, *_ = small
    files = list((root / "out").glob("*.svg"))
    assert len(files) >= 8
    for file in files:
        assert ElementTree.fromstring(file.read_text(encoding="utf-8")).tag.endswith("svg")
    words = "".join(ElementTree.fromstring((root / "out/per_class.svg").read_text(encoding="utf-8")).itertext())
    assert EVIL[:15] in words and EVIL[-14:] in words  # text, not outlines; a long name without its middle


def test_a_cell_of_the_matrix_leads_to_its_videos_with_both_streams_guesses(small) -> None:
    root, labels, logits, _ = small
    fused = (logits["spatial"].astype(float) + logits["motion"]) / 2
    guesses = fused.argmax(1)
    names = ["Class000", EVIL, "Class002"]
    text = (root / "out/report.html").read_text(encoding="utf-8")
    matrix = ElementTree.fromstring((root / "out/confusion.svg").read_text(encoding="utf-8"))
    cells = [a.get("{http://www.w3.org/1999/xlink}href") for a in matrix.iter("{http://www.w3.org/2000/svg}a")]
    happened = {(y, g) for y, g in zip(labels.tolist(), guesses.tolist(), strict=True)}
    assert sorted(cells) == sorted(f"#c{y}-{g}" for y, g in happened)
    assert len(happened) > 4
    for true, guess in happened:
        part = re.search(rf'<section id="c{true}-{guess}">(.*?)</section>', text, flags=re.DOTALL)[1]
        shown = Reader(part)
        expected = [f"Class{true:03d}/v{i % 20:02d}" for i in np.flatnonzero((labels == true) & (guesses == guess))]
        found = re.findall(r"Class\d{3}/v\d\d", shown.text)
        assert sorted(found) == sorted(expected)
        if true != guess:
            cards = re.findall(r'<div class="card".*?</table>', part, flags=re.DOTALL)
            for card, video in zip(cards, found, strict=True):
                row = true * 20 + int(video[-2:])
                rows = {tr.text.split()[0]: tr.text for tr in map(Reader, card.split("<tr>")[1:])}
                assert list(rows) == ["spatial", "motion", "fusion"]
                for stream in ("spatial", "motion"):
                    chances = np.exp(logits[stream][row]) / np.exp(logits[stream][row]).sum()
                    best = int(chances.argmax())
                    first = rows[stream].split("%")[0].split(maxsplit=1)[1]
                    assert first == f"{names[best]} {100 * chances[best]:.0f} "


def test_the_page_shows_the_figures_of_results_json(small) -> None:
    root, *_ = small
    results = json.loads((root / "out/results.json").read_text())
    shown = Reader((root / "out/report.html").read_text(encoding="utf-8")).text
    for row in ("spatial", "motion", "fusion", "std", "best_weight"):
        assert f"{results[row]['top1']:.2f}" in shown
    assert "hosen on the test labels" in shown
    assert "Training" in shown
    assert "epoch 3" in shown
    assert "top-5" not in shown  # of three classes
    assert "python " in shown.split("How this was made")[-1]
    assert f"numpy {np.__version__}" in shown


def test_how_the_epoch_was_chosen_stands_at_the_top(small, tmp_path: Path, run) -> None:
    make_record(tmp_path, 3, 4)
    for chosen, words in (("test", "chosen by the accuracy on these same"), ("val", "chosen on videos held out")):
        for stream in ("spatial", "motion"):
            path = tmp_path / stream / "predictions.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "chosen_by": chosen}))
        fuse(run, tmp_path)
        shown = Reader((tmp_path / "out/report.html").read_text(encoding="utf-8")).text
        assert words in shown.split("95 % interval\n")[0].split("mean class")[0]
    root, *_ = small
    assert "is not recorded" in Reader((root / "out/report.html").read_text(encoding="utf-8")).text


def test_calibration_says_what_this_run_shows() -> None:
    labels = np.zeros(100, dtype=int)
    labels[:50] = 1  # a stream that always says class 0 is right half the time
    for sure, verdict in ((0.99, "too sure"), (0.51, "as sure as it should be"), (0.58, "too few videos")):
        values = np.tile([sure, 1 - sure], (100, 1))
        assert verdict in sections.sureness("spatial", values, labels, [40.0, 60.0])
    values = np.eye(2)[labels] * 0.2 + 0.4  # always right, at 60 %
    assert "underconfident" in sections.sureness("spatial", values, labels, [100.0, 100.0])


@pytest.mark.parametrize("videos", [3, 6, 40, 3783])
def test_one_video_is_no_cliff(videos: int) -> None:
    from report.plots import span

    low, high = span(100 - 100 / videos, 100, videos)
    assert 100 / videos <= (high - low) / 2.9  # of three videos one is a third of all there is
    if videos > 8:
        assert 100 / videos <= (high - low) / 8
    assert high - low >= 10
    assert -3 < low < 100 - 100 / videos and 100 < high < 103


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

    agreement = {row["who"]: row for row in read_csv(root / "out/agreement.csv")}
    only_motion = (guess["motion"] == labels) & (guess["spatial"] != labels)
    assert int(agreement["only motion right"]["videos"]) == only_motion.sum()
    assert int(agreement["only motion right"]["fusion_right"]) == (guess["fusion"] == labels)[only_motion].sum()
    assert sum(int(row["videos"]) for row in agreement.values()) == 60
    same = (guess["spatial"] == guess["motion"]) & (guess["spatial"] != labels)
    assert int(agreement["none right, same guess"]["videos"]) == same.sum()

    videos = read_csv(root / "out/videos.csv")
    wrong = (guess["spatial"] != labels) & (guess["motion"] != labels)
    assert sum(row["streams_right"] == "0" for row in videos) == wrong.sum()
    row, scores = videos[7], np.exp(fused[7] - fused[7].max())
    assert row["video"] == "Class000/v07"
    assert float(row["fusion p(class)"]) == pytest.approx(scores[0] / scores.sum(), abs=1e-4)

    bins = [row for row in read_csv(root / "out/calibration.csv") if row["stream"] == "fusion"]
    assert sum(int(row["videos"]) for row in bins) == 60
    assert all(float(row["low"]) < float(row["confidence"]) <= float(row["high"]) for row in bins if int(row["videos"]))


def test_mistakes_come_with_their_frames_where_there_are_any(small) -> None:
    root, labels, logits, _ = small
    wrong = (logits["spatial"].astype(float) + logits["motion"]).argmax(1) != labels
    text = (root / "out/report.html").read_text(encoding="utf-8")
    strips = re.findall(r'data:image/jpeg;base64,[^"]+"[^>]* alt="frames of ([^"]+)"', text)
    missed = [f"Class{labels[i]:03d}/v{i % 20:02d}" for i in np.flatnonzero(wrong)]
    assert len(missed) > 5
    assert sorted(strips) == [name for name in missed if int(name[-2:]) % 2 == 0]


def test_a_report_on_101_classes_and_on_a_perfect_result(tmp_path: Path, run) -> None:
    make_record(tmp_path, 101, 2)
    write_curves(tmp_path / "spatial", "rgb", 0)  # a record of a run that was stopped at once
    fuse(run, tmp_path, "--normalize", "std")
    shown = Reader((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    least = next(
        int(re.search(r"--least: (\d+)px", attributes["style"])[1])
        for tag, attributes in shown.tags
        if tag == "figure" and attributes["aria-label"].startswith("Confusion")
    )
    assert least > 101 * 10  # pixels of a class
    assert not list((tmp_path / "out").glob("curves*"))

    perfect = tmp_path / "perfect"
    make_record(perfect, 2, 4)
    for stream in ("spatial", "motion"):
        path = perfect / stream / f"{stream}_video_preds.pickle"
        content = {key: np.eye(2, dtype=np.float32)[int(key[5:8])] for key in pickle.loads(path.read_bytes())}
        path.write_bytes(pickle.dumps(content, protocol=4))
    fuse(run, perfect)
    shown = Reader((perfect / "out/report.html").read_text(encoding="utf-8")).text
    assert "Fusion makes no mistake" in shown
    assert "There are none" in shown
    assert "Class001, right" in shown


def test_several_splits_get_one_page_that_links_to_each(tmp_path: Path, run) -> None:
    for split in (1, 2):
        make_record(tmp_path / f"s{split}", 3, 4)
        for stream in ("spatial", "motion"):
            path = tmp_path / f"s{split}" / stream / "predictions.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "split": str(split)}))
    output = tmp_path / "out"
    run(
        "fusion.py", "--spatial", tmp_path / "s{}/spatial", "--motion", tmp_path / "s{}/motion",
        "--splits", 1, 2, "--output", output,
    )  # fmt: skip
    page = Reader((output / "report.html").read_text(encoding="utf-8"))
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {"split1/report.html", "split2/report.html"} <= links
    assert "How the epoch of spatial and motion was chosen is not recorded" in page.text
    assert (output / "split2/report.html").is_file()


def test_agreement_of_three_streams_counts_every_video_once() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    guesses = {name: rng.integers(0, 3, 200) for name in "abc"}
    table = tables.agreement(guesses, guesses["a"] == labels, labels)
    assert table["videos"].sum() == 200
    hit = {name: guess == labels for name, guess in guesses.items()}
    found = table.set_index("who").loc["only a and c right"]
    assert found["videos"] == (hit["a"] & ~hit["b"] & hit["c"]).sum()
    assert found["fusion_right"] == found["videos"]


# --- pictures ------------------------------------------------------------------------------------------


def test_dark_frames_are_brightened_and_flow_has_a_colour_for_each_direction(tmp_path: Path, run) -> None:
    for number in range(1, 4):
        folder = tmp_path / "rgb/a/b"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 48), 5).point(lambda v: v // 12).convert("RGB").save(folder / f"frame{number:06d}.jpg")
    found = gallery.one_video("a/b", gallery.index_frames(tmp_path / "rgb", "rgb"), None)
    assert found["brightened"] and found["flow"] is None
    for name in ("missing", "../outside"):
        assert gallery.one_video(name, gallery.index_frames(tmp_path / "rgb", "rgb"), None) == gallery.NOTHING

    still, right = (np.full((2, 8, 8), 128, np.uint8) for _ in range(2))
    right[0] = 250
    assert gallery.flow_colours(still).min() > 230  # white
    red, green, blue = gallery.flow_colours(right)[0, 0]
    assert red > 200 and max(green, blue) < 30  # hue 0 is the direction of x


def test_frames_in_a_pack_give_the_same_strips(small, tmp_path: Path, run) -> None:
    root, *_ = small
    fuse(run, root, "--output", tmp_path / "folder")
    run("data/pack.py", root / "rgb", tmp_path / "rgb.pack")
    for stream in ("spatial", "motion"):
        shutil.copytree(root / stream, tmp_path / stream)
    path = tmp_path / "spatial/predictions.json"
    about = json.loads(path.read_text())
    about["frames"]["root"] = str(tmp_path / "rgb.pack")
    path.write_text(json.dumps(about))
    fuse(run, tmp_path)
    before, after = (
        re.findall(r"data:image/jpeg[^>]*>", (folder / "report.html").read_text(encoding="utf-8"))
        for folder in (tmp_path / "folder", tmp_path / "out")
    )
    assert before
    assert before == after


# --- training curves -----------------------------------------------------------------------------------


def test_one_run_gives_its_curves(tmp_path: Path, run) -> None:
    for stream, prefix in (("spatial", "rgb"), ("motion", "opf")):
        (tmp_path / stream).mkdir()
        write_curves(tmp_path / stream, prefix, 6)
    process = run("report/compare.py", tmp_path, "--output", tmp_path / "out")
    lines = [line.split() for line in process.stdout.splitlines()]
    # Prec@1 of epoch e is 30 + e, and the loss 2 / (e + 1)
    for stream in ("spatial", "motion"):
        assert [str(tmp_path), stream, "6", "35.00", "5", "35.00", "0.3333"] in lines
    text = (tmp_path / "out/compare.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert (tmp_path / "out/curves_motion.svg").is_file()


def test_runs_side_by_side_show_what_differs(tmp_path: Path, run) -> None:
    for name, rate in (("one", 0.1), ("two", 0.2)):
        folder = tmp_path / name / "spatial"
        folder.mkdir(parents=True)
        write_curves(folder, "rgb", 3)
        made = {"command": f"python spatial_cnn.py --lr {rate}", "settings": {"lr": rate, "seed": 1}, "seconds": 7265}
        (folder / "predictions.json").write_text(json.dumps({"stream": "spatial", "made": made}))
    (tmp_path / "two/fusion").mkdir()
    (tmp_path / "two/fusion/results.json").write_text(json.dumps({"fusion": {"top1": 12.5}}))
    process = run("report/compare.py", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "out")
    lines = [line.split() for line in process.stdout.splitlines()]
    assert ["spatial", "lr", "0.1", "0.2"] in lines
    assert not any("seed" in line for line in lines)
    assert [str(tmp_path / "two"), "fusion", "12.50"] in lines
    assert "2 h 1 min" in process.stdout
    shown = Reader((tmp_path / "out/compare.html").read_text(encoding="utf-8")).text
    assert "python spatial_cnn.py --lr 0.2" in shown
    assert shown.count(str(tmp_path / "one")) > 2


def test_no_records_or_a_broken_one_is_one_line(tmp_path: Path, run) -> None:
    for content, words in ((None, "rgb_train.csv"), ("a,b\n1,2\n", "not a training record")):
        if content:
            (tmp_path / "rgb_train.csv").write_text(content)
        process = run("report/compare.py", tmp_path, "--output", tmp_path / "out", code=2)
        assert process.stderr.count("\n") == 1
        assert words in process.stderr


def test_an_epoch_written_twice_counts_once_with_its_last_row(tmp_path: Path) -> None:
    from saved.records import read_record

    path = tmp_path / "rgb_train.csv"
    path.write_text("Epoch,Loss,Prec@1\n0,3,10\n1,2,20\n1,1.5,25\n")  # no lr, as in the original's test record
    table = read_record(path)
    assert table.index.tolist() == [0, 1]
    assert table["Loss"].tolist() == [3, 1.5]
    assert all(math.isnan(value) for value in table["lr"])
