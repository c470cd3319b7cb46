"""docs/walkthrough.ipynb runs from its first cell to its last, on few clips, and what it shows is true of them."""

import json
import re

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

for package in ("IPython", "cv2"):
    pytest.importorskip(package, reason=f"the notebook needs {package}")

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # matplotlib's, of torch's tensors
NOTEBOOK = ROOT / "docs/walkthrough.ipynb"
FEWER = {"GROUPS = range(1, 26)": "GROUPS = [1, 9]", '{"spatial": 8, "motion": 4}': '{"spatial": 1, "motion": 1}'}
CODE = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """What each code cell prints, its number of pictures, and the variables at the end: run in docs/, on two groups."""
    sources = ["".join(cell["source"]) for cell in CODE]
    for whole, part in FEWER.items():
        assert sum(source.count(whole) for source in sources) == 1
        sources = [source.replace(whole, part) for source in sources]
    before, found = sorted((ROOT / "docs").iterdir()), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(NOTEBOOK.parent)
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        try:
            matplotlib.use("module://matplotlib_inline.backend_inline")  # a kernel's
            for source in sources:
                with capture_output() as shown:
                    shell.run_cell(source).raise_error()
                found.append((shown.stdout.splitlines(), len(shown.outputs)))
            yield found, shell.user_ns
            shell.user_ns["temporary"].cleanup()
        finally:
            matplotlib.use("agg")
            shell.restore_sys_module_state()
            InteractiveShell.clear_instance()
    assert sorted((ROOT / "docs").iterdir()) == before


def test_its_outputs_are_stored_and_current(executed):
    """Text is compared where it depends on no training: whole lines, or all but their figures."""
    assert NOTEBOOK.stat().st_size < 400_000
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    exact = set()
    for cell, (new, pictures) in zip(CODE, executed[0], strict=True):
        stored = cell["outputs"]
        assert pictures == sum("image/jpeg" in output.get("data", {}) for output in stored)
        old = "".join("".join(o["text"]) for o in stored if o["output_type"] == "stream").splitlines()
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
    found, variables = executed
    names = variables["names"]
    assert "9 videos, 9 classes" in "\n".join(line for lines, _ in found for line in lines)
    assert names == [a + m for a in ("Checks", "Dots", "Stripes") for m in ("Fall", "Rise", "Spin")]
    scores = {stream: {video: one.mean(0) for video, one in result.frame_logits.items()}
              for stream, result in variables["results"].items()}  # fmt: skip
    for of_video in scores.values():
        assert sorted(of_video) == sorted(f"{name}_g01_c01" for name in names)  # group 1 is in split 1's test set
    scores["fusion"] = {video: (one + scores["motion"][video]) / 2 for video, one in scores["spatial"].items()}
    for row, of_video in scores.items():
        right = [video.startswith(names[int(np.argmax(one))] + "_") for video, one in of_video.items()]
        assert variables["outcome"].results[row]["top1"] == pytest.approx(100 * np.mean(right)), row
