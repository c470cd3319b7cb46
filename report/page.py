"""A report as one HTML page that needs nothing but itself, and its figures and tables as files beside it."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context

from report import tables
from report.blocks import Plot, Report, Section
from report.plots import DARK, LIGHT
from utils import atomic_path

ZOOM = 118 / 72  # pixels on the page for a point of a figure


def write(report: Report, path: Path) -> Path:
    """Write the page at `path`, and every section's figures (.svg) and tables (.csv) into its folder."""
    drawings = {}
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Plot):
                drawings[block.name] = svg(block)
                with atomic_path(path.parent / f"{block.name}.svg") as temporary:
                    temporary.write_text(drawings[block.name], encoding="utf-8")
        for name, table in section.tables.items():
            tables.write(table, path.parent / f"{name}.csv")
    inline = {
        block.name: on_page(drawings[block.name], block)
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Plot)
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        report=report, drawings=inline, files=files_of, light=LIGHT, dark=DARK
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def files_of(section: Section) -> list[str]:
    """The names of the files beside the page that hold what a section shows."""
    figures = [f"{block.name}.svg" for block in section.blocks if isinstance(block, Plot)]
    return figures + [f"{name}.csv" for name in section.tables]


def svg(plot: Plot) -> str:
    """A figure as an SVG document. Its text stays text: a browser finds a font for any script."""
    file = io.StringIO()
    # The salt names what the figure defines, so that two figures on one page don't share a name.
    with rc_context({"svg.hashsalt": plot.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser's fonts will have it
        plot.figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def on_page(drawing: str, plot: Plot) -> Markup:
    """A figure's SVG as a part of the page: its colours follow the page's theme, its links say where they lead."""
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every figure, and nothing refers to them
    for name, colour in LIGHT.items():
        drawing = drawing.replace(f": {colour}", f": var(--{name})")
    drawing = re.sub(  # matplotlib's links open new windows, even within the page
        r'<a xlink:href="([^"]+)"[^>]*>', lambda link: _link(link[1], plot.titles.get(link[1])), drawing
    )
    found = re.search(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)
    assert found is not None
    width, height = (round(float(side) * ZOOM) for side in found.groups())
    size = f'width="{width}" height="{height}" viewBox="0 0 {found[1]} {found[2]}"'
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg" {size}' + drawing[drawing.index(">") :])


def _link(target: str, title: str | None) -> str:
    return f'<a href="{target}">' + (f"<title>{escape(title)}</title>" if title else "")
