"""A report as plain data, and as one HTML page that needs nothing but itself.

sections.py and compare.py fill the data; `write` makes the page of it, with figures (.svg) and tables (.csv) beside it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from report import tables
from report.plots import LIGHT
from utils import atomic_path

# --- the data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A paragraph; `soft` for what is said in passing."""

    text: str
    soft: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Link:
    """A table's cell that leads somewhere: to an anchor of the page ("#c3-5") or to a file beside it."""

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows of cells, words in the first `words` columns and numbers in the others.

    `main` is the row to stress; rows from `aside` on are only for comparison. `folded` is the line behind which the
    table waits to be opened, "" for one that is open.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    main: int | None = None
    aside: int | None = None
    folded: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Plot:
    """A figure, also written as <name>.svg. Narrower than `least` pixels it scrolls sideways."""

    name: str
    figure: Figure
    alt: str
    least: int = 480
    kind: str = "plot"

    @property
    def most(self) -> int:
        """The width in pixels at which the figure's text is as large as the page's."""
        return round(118 * self.figure.get_figwidth())


@dataclass(frozen=True)
class Video:
    """One video that fusion gets wrong, with the best guesses of each stream: name -> (class, probability)."""

    anchor: str
    name: str
    guesses: Mapping[str, Sequence[tuple[str, float]]]
    frames: str | None  # pictures are data URIs
    flow: str | None
    path: str | None  # of the video file, where the extraction noted it
    brightened: bool


@dataclass(frozen=True)
class Mistakes:
    """A class's videos: the wrong ones by what fusion takes them for, and the names of the others with a remark."""

    anchor: str
    name: str
    videos: int
    wrong: Sequence[tuple[str, str, Sequence[Video]]]  # (anchor, class guessed, videos)
    right: Sequence[tuple[str, str]]
    right_anchor: str


@dataclass(frozen=True)
class Gallery:
    classes: Sequence[Mistakes]
    kind: str = "gallery"


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Text | Table | Plot | Gallery]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # each is written as <name>.csv

    @property
    def anchor(self) -> str:
        return "s-" + "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True)
class Tile:
    """A figure in large type, with the colour of its stream and a word below."""

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
    notes: Sequence[str] = ()  # what one has to know to read the tiles
    made: Sequence[tuple[str, str]] = ()  # how it came about: (what, words)


# --- the page ------------------------------------------------------------------------------------------


def write(report: Report, path: Path) -> Path:
    """Write the page at `path`, and every section's figures (.svg) and tables (.csv) into its folder."""
    drawings = {}
    for section in report.sections:
        for plot in (block for block in section.blocks if isinstance(block, Plot)):
            drawing = svg(plot)
            with atomic_path(path.parent / f"{plot.name}.svg") as temporary:
                temporary.write_text(drawing, encoding="utf-8")
            inline = drawing[drawing.index("<svg") :].replace("xlink:href", "href")
            # Groups have the same names in every figure, and an id stands once on a page.
            drawings[plot.name] = Markup(re.sub(r'<g id="[^"]*"', "<g", inline))
        for name, table in section.tables.items():
            tables.write(table, path.parent / f"{name}.csv")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["file_url"] = lambda path: Path(path).as_uri()
    page = environment.get_template("page.html").render(report=report, drawings=drawings, files=files_of, light=LIGHT)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def files_of(section: Section) -> list[str]:
    """The names of the files beside the page that hold what a section shows."""
    figures = [f"{block.name}.svg" for block in section.blocks if isinstance(block, Plot)]
    return figures + [f"{name}.csv" for name in section.tables]


UNSAID = ("Date", "Creator", "Format", "Type")  # of a figure: it is made again to the same bytes


def svg(plot: Plot) -> str:
    """A figure as an SVG document. Its text stays text: a browser finds a font for any script."""
    file = io.StringIO()
    # The salt names what the figure defines, so that two figures on one page don't share a name.
    with rc_context({"svg.hashsalt": plot.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser's fonts will have it
        plot.figure.savefig(file, format="svg", bbox_inches="tight", metadata=dict.fromkeys(UNSAID))
    return file.getvalue().replace(' target="_blank"', "")  # links stay on the page
