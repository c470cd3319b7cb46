"""What a report says, as plain data: sections.py and compare.py fill it, page.py makes HTML of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure


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
    """A figure, also written as <name>.svg. Narrower than `least` pixels it scrolls sideways.

    `titles` says what the figure's links lead to: anchor -> the words shown above it.
    """

    name: str
    figure: Figure
    alt: str
    least: int = 0
    titles: Mapping[str, str] = field(default_factory=dict)
    kind: str = "plot"


@dataclass(frozen=True)
class Video:
    """One video that fusion gets wrong, with the best guesses of each stream: name -> (class, probability)."""

    anchor: str
    name: str
    guesses: Mapping[str, Sequence[tuple[str, float]]]
    frames: str | None  # a data URI


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
