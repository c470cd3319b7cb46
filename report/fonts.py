"""A font for class names in any script: DejaVu Sans, which matplotlib brings along, or one that the system has.

Pictures and films are drawn in one font per text. A page's figures keep their text as text, for which the browser
finds fonts; there a font only tells how much room a name needs.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# Parts of file names: of two fonts that have the same characters, the one with fewer of these.
FANCY = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed", "narrow", "emoji")


def drawable(text: str) -> str:
    """`text`, with "?" for each character that no font here has; one line on stderr says so for each script."""
    missing = needed(text) - characters(font_file(needed(text)))
    for script in sorted({unicodedata.name(one, "UNKNOWN").split()[0] for one in missing}):
        _say_missing(script)
    return "".join("?" if one in missing else one for one in text)


def font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A Pillow font of `size` pixels with the characters of `text`, or most of them."""
    return _opened(font_file(needed(text)), size)


def families(texts: Iterable[str]) -> list[str]:
    """Names of fonts for matplotlib that together have most of the characters of `texts`, its own first."""
    from matplotlib.font_manager import fontManager, get_font

    found = ["DejaVu Sans"]
    for path in {font_file(needed(text)) for text in texts} - {_shipped()}:
        if path is not None:
            fontManager.addfont(path)
            found.append(get_font(path).family_name)
    return found


def needed(text: str) -> frozenset[str]:
    """The characters of `text` that a font has to have: not spaces, nor marks that only join or direct others."""
    return frozenset(one for one in text if not one.isspace() and unicodedata.category(one) not in ("Cf", "Cc"))


@lru_cache(maxsize=1000)
def font_file(wanted: frozenset[str]) -> Path | None:
    """The font with most of the characters `wanted`: matplotlib's own if it has all; None where there is no font."""
    shipped = _shipped()
    if shipped is None or wanted <= characters(shipped):
        return shipped

    def merit(path: Path) -> tuple[int, bool, int]:
        return len(wanted & characters(path)), path == shipped, -sum(word in path.name.lower() for word in FANCY)

    return max([shipped, *_installed()], key=merit)


@cache
def characters(path: Path | None) -> frozenset[str]:
    """The characters in a font file (in a collection's first font); for None those in Pillow's own font."""
    if path is None:
        return frozenset(map(chr, range(33, 127)))
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(str(path)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()  # nothing that can be read as a font


@cache
def _shipped() -> Path | None:
    if find_spec("matplotlib") is None:
        return None
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@cache
def _installed() -> list[Path]:
    """The system's fonts that scale: pictures of letters, as in fonts of emoji, come in one size."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(path for path in map(Path, findSystemFonts()) if "emoji" not in path.name.lower())


@lru_cache(maxsize=100)
def _opened(path: Path | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


@cache
def _say_missing(script: str) -> None:
    print(
        f"note: no font here has all {script} characters of the class names, so they are drawn as ?; "
        "Noto fonts have them (Debian: apt install fonts-noto-core fonts-noto-cjk)",
        file=sys.stderr,
    )
