"""A report as plain data, and as one self-contained HTML page.

sections.py fills the data; `write` renders the page and saves figures (.svg) and tables (.csv) beside it.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from report.plots import LIGHT, STYLE
from utils import atomic_path, csv_text

# --- the data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A paragraph; `soft` marks a side remark."""

    text: str
    soft: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Link:
    """A table cell that links to an anchor of the page ("c3-5")."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Table:
    """Rows of cells: text in the first `words` columns, numbers in the others.

    `main` is the row to highlight; rows from `aside` on are only for comparison.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    main: int | None = None
    aside: int | None = None
    kind: str = "table"


@dataclass(frozen=True)
class Plot:
    """A figure, also written as <name>.svg. If less than `least` pixels wide, it scrolls sideways."""

    name: str
    figure: Figure
    alt: str
    least: int = 480
    kind: str = "plot"

    @property
    def most(self) -> int:
        """Return the width in pixels at which the figure's text is as large as the page's."""
        return round(142 * self.figure.get_figwidth())


@dataclass(frozen=True)
class Picture:
    source: str  # a data URI
    alt: str
    under: str = ""  # a line below it


@dataclass(frozen=True)
class Card:
    """One video, or a pair: pictures, paths of the files, and the best guesses of each stream."""

    anchor: str
    title: str
    pictures: Sequence[Picture]
    paths: Sequence[str] = ()  # of the video files, if the extraction recorded them
    guesses: Mapping[str, Sequence[tuple[str, float, bool]]] = field(
        default_factory=dict
    )  # stream -> (class, probability, whether it is the true class)


@dataclass(frozen=True)
class Cards:
    """A group of cards; with a title, it starts collapsed."""

    cards: Sequence[Card]
    title: str = ""
    anchor: str = ""
    kind: str = "cards"


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Table | Plot | Cards]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # each is written as <name>.csv

    @property
    def anchor(self) -> str:
        return "s-" + "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())

    @property
    def files(self) -> list[str]:
        """Return the names of the files beside the page that hold the section's figures and tables."""
        figures = [f"{block.name}.svg" for block in self.blocks if isinstance(block, Plot)]
        return figures + [f"{name}.csv" for name in self.tables]


@dataclass(frozen=True)
class Tile:
    """A number in large type, with the colour of its stream and a line below."""

    name: str
    value: str
    below: str
    colour: str


@dataclass(frozen=True)
class Report:
    title: str
    summary: str
    sections: Sequence[Section]
    tiles: Sequence[Tile] = ()
    notes: Sequence[str] = ()  # needed to read the tiles correctly
    made: Sequence[tuple[str, str]] = ()  # how the report was made: (item, text)


# --- the page ------------------------------------------------------------------------------------------


def write(report: Report, path: Path) -> Path:
    """Write the page to `path`, and every section's figures (.svg) and tables (.csv) into its folder."""
    drawings = {}
    for section in report.sections:
        for plot in (block for block in section.blocks if isinstance(block, Plot)):
            drawing = svg(plot)
            with atomic_path(path.parent / f"{plot.name}.svg") as temporary:
                temporary.write_bytes(drawing)
            drawings[plot.name] = "data:image/svg+xml;base64," + base64.b64encode(drawing).decode()
        for name, table in section.tables.items():
            write_table(table, path.parent / f"{name}.csv")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["file_url"] = lambda path: Path(path).as_uri()
    page = environment.get_template("page.html").render(report=report, drawings=drawings, light=LIGHT)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV whose cells a spreadsheet does not run as formulas."""
    table = table.rename(columns=csv_text).map(csv_text)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


def svg(plot: Plot) -> bytes:
    """Return a figure as an SVG document. Text stays text: a browser finds a font for any script."""
    file = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": plot.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has a font for it
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # so a rerun gives the same bytes
        plot.figure.savefig(file, format="svg", bbox_inches="tight", metadata=unsaid)
    return file.getvalue()
