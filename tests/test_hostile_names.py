"""Names and lists that somebody else chose: what a terminal or a spreadsheet would act on, what no file can hold."""

import csv
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
from prediction_files import write
from test_extract import failures, images
from video_files import extract, make_video

from report.page import write_table
from utils import csv_text, printable

# --- extraction ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8, and pipes among files")
def test_one_bad_file_is_one_failure_and_the_rest_is_extracted(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for name in ("a good.avi", "ß.avi", "n" * 246 + ".avi", "l" * 251 + ".avi"):
        make_video(root / name, 0, 4)
    made = make_video(root / "copy.avi", 0, 4).read_bytes()
    with open(os.fsencode(root) + b"/latin-\xe4.avi", "wb") as file:
        file.write(made)
    with open(root / "ring\x1b[31m\x07.avi", "wb") as file:
        file.write(b"no video")
    os.mkfifo(root / "pipe.avi")
    command = ("rgb", root, out, "--sampling-rate", 1)
    said = extract(*command, code=1)
    assert "\x1b" not in said and "\x07" not in said and "Traceback" not in said
    reasons = failures(out)
    assert set(reasons) == {"l" * 251 + ".avi", "latin-\\udce4.avi", "pipe.avi", "ring\\x1b[31m\\x07.avi"}
    assert "too long" in reasons["l" * 251 + ".avi"]
    assert "UTF-8" in reasons["latin-\\udce4.avi"] and "pipe" in reasons["pipe.avi"]
    assert all(len(images(out / name)) == 4 for name in ("a good", "ß", "n" * 246, "copy"))
    (root / "pipe.avi").unlink()
    extract(*command, code=1)  # failures are tried again, and stay failures
    assert failures(out).keys() == reasons.keys() - {"pipe.avi"}


# --- spreadsheets and terminals ------------------------------------------------------------------------

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "\r=1+1", '=HYPERLINK("http://x","y")')


def test_no_cell_of_a_csv_begins_as_a_formula(tmp_path):
    table = pd.DataFrame({"class": [*FORMULAS, "plain", "a=b"], "@gain": [-1.5, 2, 3, 4, 5, 6, 7, 8, 9]})
    write_table(table, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "'@gain"] and rows[1] == ["'=1+1", "-1.5000"]
    assert [row[0] for row in rows[-2:]] == ["plain", "a=b"]
    assert all(row[0][0] not in "=+-@\t\r" for row in rows[1:])
    assert csv_text(-1.5) == -1.5 and csv_text(None) is None and csv_text("-1.5") == "'-1.5"


def test_what_a_terminal_would_act_on_is_shown_as_its_escape():
    assert printable("a\x1b]0;title\x07\r\n\x9b31m") == "a\\x1b]0;title\\x07\\r\\n\\x9b31m"
    assert printable("gpj.\u202eexe") == "gpj.\\u202eexe"
    assert printable("Tänzer 跳舞 👩‍👩‍👧") == "Tänzer 跳舞 👩‍👩‍👧"
    printable(os.fsdecode(b"\xff\xe4")).encode()  # can be written anywhere


def test_names_in_predictions_reach_neither_terminal_nor_spreadsheet(run, tmp_path):
    names = ["=cmd|'/c calc'!A1", "red\x1b[31m"]
    rng = np.random.default_rng(0)
    labels = {f"{names[i % 2]}/v{i}": i % 2 for i in range(6)}
    for stream in ("spatial", "motion"):
        scores = {name: rng.normal(size=(2, 2)).astype("f4") for name in labels}
        folder = tmp_path / stream
        write(folder, stream, scores, labels)
        about = json.loads((folder / "predictions.json").read_text())
        (folder / "predictions.json").write_text(json.dumps({**about, "class_names": names}))
    process = run("fusion.py", tmp_path / "spatial", tmp_path / "motion", "--output", tmp_path / "out")
    assert "\x1b" not in process.stdout + process.stderr
    found = list((tmp_path / "out").glob("*.csv"))
    assert len(found) == 2  # per class, confusion
    for path in found:
        with open(path, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        words = [cell for cell in cells if not cell.lstrip("-").replace(".", "").isdigit()]
        assert not any(word.startswith(("=", "+", "-", "@")) or "\x1b" in word for word in words), path
