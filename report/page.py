"""The report: one self-contained HTML page about a test set, with its tables as CSV files beside it."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from report import gallery
from report.outcome import FEW_CLASSES, STD_NOTE, Outcome, rows
from saved.records import in_words, provenance
from utils import atomic_path, csv_text, plural

WORST = 15  # classes in the table; the CSV has all
WIDE = 25  # with more classes, the confusion matrix is wider than the page
CHOSEN = {  # how far to trust an accuracy, by how its network's epoch was chosen (predictions.json chosen_by)
    "test": "The epoch of {} was chosen by the accuracy on these same test videos, as in the original work: "
    "its figures here are somewhat too high. --val-groups chooses without the test set.",
    "val": "The epoch of {} was chosen on videos held out of training, not on these.",
    "last": "The epoch of {} is the last of a number that was fixed before.",
    "unknown": "How the epoch of {} was chosen is not recorded. The original training chooses it by the "
    "accuracy on the test videos themselves, which makes such figures somewhat too high.",
}


def write_report(outcome: Outcome, output: Path, title: str) -> Path:
    """Write report.html, confusion.svg and the tables into `output`. Return the page's path."""
    results, names = outcome.results, outcome.test_set.class_names
    classes, kinds = class_table(outcome), gallery.mistakes(outcome)
    counts = np.zeros((len(names), len(names)), dtype=int)  # true classes in rows, guesses in columns
    np.add.at(counts, (outcome.test_set.labels, outcome.fused.argmax(axis=1)), 1)
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    matrix = draw_confusion(counts[np.ix_(used, used)], [names[label] for label in used])
    look_alikes = results.get("look_alikes", {})
    pairs = look_alikes["pairs"] if look_alikes.get("warns") else []
    both = [pair[part] for pair in pairs for part in ("test", "training")]
    alike = gallery.look_up(outcome.test_set.sources, both)
    settings = ", ".join(f"{key} {value}" for key, value in results["settings"].items())

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters |= {
        "capital": lambda line: line[:1].upper() + line[1:], "plural": plural,
        "bounds": lambda two: f"{two[0]:.1f} – {two[1]:.1f}",
        "file_url": lambda path: Path(path).absolute().as_uri(),
    }  # fmt: skip
    page = environment.get_template("page.html").render(
        title=title, results=results, main=outcome.main, streams=list(outcome.rows), rows=rows(results),
        top5=results["classes"] > FEW_CLASSES, std_note=STD_NOTE, selection=selection(outcome),
        pairs=pairs, alike=alike, worst=classes.head(WORST), kinds=kinds,
        wrong=sum(map(len, kinds.values())), unused=len(names) - len(used), wide=len(used) > WIDE,
        matrix="data:image/svg+xml;base64," + base64.b64encode(matrix).decode(),
        made=[*sources(outcome), ("this page", in_words(provenance({}))), ("settings", settings)],
    )  # fmt: skip
    table = pd.DataFrame(counts, columns=names)
    table.insert(0, "true class", names, allow_duplicates=True)
    write_table(table, output / "confusion.csv")
    write_table(classes, output / "per_class.csv")
    for path, data in (output / "confusion.svg", matrix), (output / "report.html", page.encode()):
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return output / "report.html"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV whose cells a spreadsheet does not run as formulas."""
    table = table.rename(columns=csv_text).map(csv_text)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


def class_table(outcome: Outcome) -> pd.DataFrame:
    """Return a row per class, worst first: class, videos, top-1 in % of each stream and fusion."""
    labels = outcome.test_set.labels
    label, videos = np.unique(labels, return_counts=True)
    table = pd.DataFrame({"class": [outcome.test_set.class_names[one] for one in label], "videos": videos})
    for name, values in outcome.rows.items():
        right = values.argmax(axis=1) == labels
        table[name] = 100 * np.bincount(labels, weights=right)[label] / videos
    return table.sort_values([outcome.main, "class"], ignore_index=True)


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw counts (classes, classes) as a heat map, an SVG. Many classes get small cells without numbers.

    Text stays text, in fonts of the browser. Shades grow with the share of the row.
    """
    count, wide = len(names), len(names) > WIDE
    short = [name if len(name) <= 30 else f"{name[:15]}…{name[-14:]}" for name in names]
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    labels = 0.07 * max(map(len, short), default=0) + 0.6  # inches, as all sizes here
    side = 0.115 * count + 2 if wide else min(max(0.4 * count, 1.2) + labels, 7)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "confusion", "text.parse_math": False}
    file = io.BytesIO()
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has a font for it
        drawn = Figure(figsize=(side + (0 if wide else 0.8), side), layout="constrained")  # 0.8: the scale
        axes = drawn.subplots()
        # with these limits, one mistake in a hundred differs from white, and the darkest blue from black
        shown = np.where(matrix, share, np.nan)
        shades = axes.imshow(shown, "Blues", vmin=-5, vmax=115, interpolation="none")
        axes.set_xticks(range(count), short, rotation=90, fontsize=7 if wide else 8.5)
        axes.set_yticks(range(count), short, fontsize=7 if wide else 8.5)
        axes.set(xlabel="guessed", ylabel="true")
        scale = drawn.colorbar(shades, ax=axes, shrink=0.6, aspect=30, label="% of the true class",
                               boundaries=range(0, 101, 4))  # fmt: skip
        scale.set_ticks([0, 25, 50, 75, 100])
        for row, column in () if wide else zip(*np.nonzero(matrix), strict=True):
            tone = "white" if share[row, column] > 60 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=tone)
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # so a rerun gives the same bytes
        drawn.savefig(file, format="svg", bbox_inches="tight", metadata=unsaid)
    return file.getvalue()


def selection(outcome: Outcome) -> list[str]:
    """Say how the networks' epochs were chosen; skip heads, which have no epochs, and predict.py's videos."""
    streams: dict[str, list[str]] = {}
    for name, source in outcome.test_set.sources.items():
        is_head = (source.meta.get("checkpoint") or {}).get("epoch") == -1
        if not is_head and "files" not in source.meta:
            how = source.meta.get("chosen_by")
            streams.setdefault(how if how in CHOSEN else "unknown", []).append(name)
    return [CHOSEN[how].format(" and ".join(names)) for how, names in streams.items()]


def sources(outcome: Outcome) -> list[tuple[str, str]]:
    """Return where each stream's predictions came from, as (item, text)."""
    lines = []
    for name, source in outcome.test_set.sources.items():
        line = f"{source.path}, {source.level}-level logits"
        if checkpoint := source.meta.get("checkpoint"):
            epoch = checkpoint.get("epoch")
            line += f"; checkpoint {checkpoint.get('name')}{'' if epoch == -1 else f', epoch {epoch}'}"
        if protocol := source.meta.get("protocol"):
            line += "; " + ", ".join(f"{key} {value}" for key, value in protocol.items())
        lines.append((name, line))
        if made := in_words(source.meta.get("made")):
            lines.append((f"{name}'s run", made))
    return lines
