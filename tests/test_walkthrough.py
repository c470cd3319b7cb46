"""docs/walkthrough.ipynb runs from its first cell to its last, on few clips, and what it shows is true of them."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

for package in ("nbformat", "nbclient", "ipykernel", "matplotlib", "cv2"):
    pytest.importorskip(package, reason=f"the notebook needs {package}")

import nbformat
from nbclient import NotebookClient

NOTEBOOK = ROOT / "docs/walkthrough.ipynb"
FEWER = {"GROUPS = range(1, 26)": "GROUPS = [1, 2, 9]", '{"spatial": 8, "motion": 4}': '{"spatial": 1, "motion": 1}'}
TESTED = 2 * 9  # groups 1 and 2 are of split 1's test set (1 to 7), and each has a clip of every class
# What the notebook's last cell leaves behind, said by one more: files are read before the folder goes.
TOLD = """
import json, pickle
pickles = [pickle.loads((WORK / s / f"{s}_video_preds.pickle").read_bytes()) for s in ("spatial", "motion")]
plain = [{name: scores.tolist() for name, scores in one.items()} for one in pickles]
print(json.dumps({"names": names, "predictions": plain, "work": str(WORK), "results": outcome.results}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> tuple[nbformat.NotebookNode, dict]:
    """The notebook with its outputs, run in docs/ on three groups, and what the cell TOLD says."""
    notebook = nbformat.read(NOTEBOOK, 4)
    for whole, part in FEWER.items():
        assert sum(cell.source.count(whole) for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(whole, part)
    notebook.cells.append(nbformat.v4.new_code_cell(TOLD))
    scratch = tmp_path_factory.mktemp("notebook")
    # one thread: others' tests run beside; its temporary folder, settings and histories in the test's
    set_here = {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch), "IPYTHONDIR": str(scratch / "ipython")}
    before = sorted((ROOT / "docs").iterdir())
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources=where)
    client.execute(env={**os.environ, **set_here})
    assert sorted((ROOT / "docs").iterdir()) == before
    told = json.loads(notebook.cells.pop().outputs[0].text)
    assert Path(told["work"]).parent == scratch
    assert not Path(told["work"]).exists()  # gone with the kernel
    return notebook, told


def said(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each code cell prints, line by line."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(o.text for o in cell.outputs if o.output_type == "stream").splitlines() for cell in cells]


def test_its_outputs_are_stored_and_current(executed):
    """Text is compared where it depends on no training: whole lines, or all but their figures."""
    stored, now = nbformat.read(NOTEBOOK, 4), executed[0]
    nbformat.validate(stored)
    assert NOTEBOOK.stat().st_size < 400_000
    for notebook in (stored, now):
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert {output.output_type for output in outputs} == {"stream", "display_data"}
        assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 6
    exact = set()
    for old, new in zip(said(stored), said(now), strict=True):
        if any("classes, accuracy" in line for line in old):  # the table's notes depend on the accuracies
            continue
        lines = []
        for one in (old, new):
            same = {line for line in one if "moves by x, y" in line or "channels, height, width" in line}
            exact |= same
            lines.append(same | {re.sub(r"[\d.]+", "#", line) for line in one})
        assert lines[0] == lines[1]
    assert len(exact) == 5


def test_its_table_counts_the_test_clips_and_averages_both_streams(executed):
    notebook, told = executed
    assert f"{TESTED} videos, 9 classes" in "\n".join(itertools.chain(*said(notebook)))
    spatial, motion = told["predictions"]
    assert spatial.keys() == motion.keys()
    appearances, motions = ("Checks", "Dots", "Stripes"), ("Fall", "Rise", "Spin")
    assert told["names"] == [a + m for a in appearances for m in motions]
    assert sorted(spatial) == sorted(f"{name}_g0{group}_c01" for name in told["names"] for group in (1, 2))
    rows = {"spatial": spatial, "motion": motion}
    rows["fusion"] = {name: np.add(spatial[name], motion[name]) / 2 for name in spatial}
    for row, logits in rows.items():
        right = [name.startswith(told["names"][int(np.argmax(scores))] + "_") for name, scores in logits.items()]
        assert told["results"][row]["top1"] == pytest.approx(100 * np.mean(right)), row
