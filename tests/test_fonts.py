"""Class names in any script: which font is found, and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

NAME = "Tänzer 跳舞"
RUNES = "ᚠᚢ"  # which DejaVu Sans has not, nor most systems


def make_font(path: Path, characters: str) -> None:
    """A font in which every character is a black square, and a missing one is empty."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [f"uni{ord(one):04X}" for one in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, pen.glyph())})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in [".notdef", *names]})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True)
    builder.save(path)


def draw(tmp_path: Path, text: str) -> tuple[subprocess.CompletedProcess, np.ndarray]:
    """What a process says that draws `text` three times where fonts lie in tmp_path only, and the picture."""
    script = f"""
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from report import fonts
import matplotlib.font_manager as manager
manager.findSystemFonts = lambda: [str(path) for path in __import__("pathlib").Path({str(tmp_path)!r}).rglob("*.ttf")]
for _ in range(3):
    image = Image.new("L", (400, 40))
    shown = fonts.drawable({text!r})
    ImageDraw.Draw(image).text((0, 0), shown, 255, fonts.font(shown, 20))
print(shown)
image.save({str(tmp_path / "text.png")!r})
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    with Image.open(tmp_path / "text.png") as image:
        return process, np.asarray(image)


def test_latin_with_accents_and_cyrillic_need_no_font_of_the_system(tmp_path: Path) -> None:
    process, picture = draw(tmp_path, "Tänzer, Füße, танец")
    assert process.stdout == "Tänzer, Füße, танец\n"
    assert process.stderr == ""
    assert picture.max() > 200


def test_a_font_of_the_system_is_found_by_the_characters_it_has(tmp_path: Path) -> None:
    make_font(tmp_path / "fonts/squares.ttf", "Tänzer跳舞")
    process, picture = draw(tmp_path, NAME)
    assert process.stdout == f"{NAME}\n"
    assert process.stderr == ""
    assert picture[:, :120].mean() > 200 * 20 / 40  # the squares of six letters, one after the other
    assert draw(tmp_path, "танец")[1][:, :100].mean() < 100  # which DejaVu has and this font hasn't


def test_without_a_font_one_line_says_so_and_the_name_stays_plain(tmp_path: Path) -> None:
    process, picture = draw(tmp_path, f"Tänzer {RUNES}")
    assert process.stdout == "Tänzer ??\n"
    assert process.stderr.count("\n") == 1
    assert "RUNIC" in process.stderr
    assert "fonts-noto" in process.stderr
    assert picture.max() > 200


def test_a_picture_with_an_answer_says_it_once(tmp_path: Path, capfd) -> None:
    from recogniser.overlay import Caption, Scores, draw

    names = ["Tänzer", f"Runen {RUNES}", "Füße"]
    scores = Scores(names, np.array([0.0, 1.0]), np.full((2, 3), 0.3), [0.3, 0.3, 0.3], (0.0, 1.0))
    picture = np.zeros((120, 160, 3), dtype=np.uint8)
    for now in (0.2, 0.7):
        drawn = draw(picture, Caption("Tänzer 50 %", [f"spatial: {RUNES} 30 %"]), scores, now)
    assert drawn.shape[1] == 640
    assert capfd.readouterr().err.count("\n") <= 1  # some systems have runes
