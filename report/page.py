"""report.html: what a fusion found, on one self-contained page, with the PNGs and CSVs that it shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from report import plots, tables
from utils import atomic_path

ZOOM = 118  # pixels on the page for an inch of a figure


class Page:
    """A page that grows section by section, and the folder where its files lie."""

    def __init__(self, output: Path):
        self.output = output
        self.sections: list[tuple[str, list[str]]] = []  # (heading, pieces of HTML)

    def section(self, heading: str) -> None:
        self.sections.append((heading, []))

    def add(self, html: str) -> None:
        self.sections[-1][1].append(html)

    def paragraph(self, text: str, soft: bool = False) -> None:
        self.add(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")

    def figure(self, name: str, drawn: Figure, alt: str, least: int | None = None) -> None:
        """Save a figure as PNG and embed it; one with a least width in pixels scrolls sideways on a phone."""
        path = self.output / f"{name}.png"
        plots.save(drawn, path)
        data = base64.b64encode(path.read_bytes()).decode()
        with Image.open(path) as image:
            width, height = (round(side * ZOOM / plots.DPI) for side in image.size)
        style = f' class="heat" style="--least:{least}px"' if least else ""
        size = f'width="{width}" height="{height}" alt="{escape(alt)}"'
        self.add(f'<figure{style}><img src="data:image/png;base64,{data}" {size}></figure>')

    def csv(self, name: str, table: pd.DataFrame) -> None:
        tables.write(table, self.output / f"{name}.csv")

    def files(self, *names: str) -> None:
        links = ", ".join(f'<a href="{name}">{name}</a>' for name in names)
        self.add(f'<p class="soft">Beside this page: {links}</p>')

    def write(self, title: str, opening: str, closing: str) -> Path:
        """Write report.html: title, the HTML `opening`, links to the sections, the sections, `closing`."""
        style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
        links, body = "", ""
        for place, (heading, pieces) in enumerate(self.sections):
            links += f'<a href="#s{place}">{escape(heading)}</a>\n'
            body += f'<h2 id="s{place}">{escape(heading)}</h2>\n' + "\n".join(pieces) + "\n"
        html = (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(title)}</h1>\n{opening}\n<nav>\n{links}</nav>\n{body}<footer>{closing}</footer>\n"
            "</main>\n</body>\n</html>\n"
        )
        path = self.output / "report.html"
        with atomic_path(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
        return path


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], main: int | None = None) -> str:
    """An HTML table of escaped cells, text to the left in the first column, numbers to the right in the others.

    `main` is the row to stress.
    """

    def cells(tag: str, values: Sequence[object]) -> str:
        sides = [""] + [" class=n"] * (len(values) - 1)
        return "".join(f"<{tag}{side}>{escape(str(v))}</{tag}>" for v, side in zip(values, sides, strict=True))

    body = ""
    for place, row in enumerate(rows):
        body += f"<tr{' class=main' if place == main else ''}>{cells('td', row)}</tr>\n"
    head = f"<tr>{cells('th', columns)}</tr>"
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def tiles(results: Mapping) -> str:
    """The main figures in large type: each stream's top-1 and fusion's, with their intervals."""
    html = ""
    for place, name in enumerate([*results["streams"], "fusion"]):
        low, high = results["interval_95"][name]["top1"]
        html += (
            f'<div class="tile" style="--hue:{plots.colour(name, place)}"><span>{escape(name)}</span>'
            f"<b>{results[name]['top1']:.2f}</b><span>{low:.1f} – {high:.1f}</span></div>\n"
        )
    return f'<div class="tiles">\n{html}</div>'


def card(video: str, true: str, strip: str | None, guesses: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """One video: its true class, a strip of frames if there is one, and the best guesses of each stream.

    guesses: name -> (class, probability), best first.
    """
    picture = f'<img src="{strip}" alt="frames of {escape(video)}">' if strip else ""
    lines = ""
    for name, best in guesses.items():
        items = [
            f"<span>{'<b>' if guess == true else ''}{escape(guess)}{'</b>' if guess == true else ''}"
            f" <i>{100 * chance:.0f} %</i></span>"
            for guess, chance in best
        ]
        lines += f"<tr><th>{escape(name)}</th><td>{' '.join(items)}</td></tr>\n"
    heading = f'<h3>{escape(true)}</h3><p class="soft">{escape(video)}</p>'
    return f'<div class="card">{picture}{heading}<table>{lines}</table></div>\n'
