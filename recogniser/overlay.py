"""An answer drawn over its video: the labels on the picture, below it a strip of the classes' scores over time.

Only Pillow draws here; OpenCV is needed to write a film.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.videos import import_cv2, read_frames
from recogniser.answers import Answer, best
from recogniser.windows import frame_rate
from utils import InputError, atomic_path, check_writable

# Okabe and Ito's palette, its dark colours lightened for the dark panel: told apart with any colour vision.
COLOURS = ("#f0a020", "#56b4e9", "#2fc79a", "#f0e442", "#d98bb9")
PANEL, RULE, FAINT, INK = "#15191e", "#353c45", "#98a2ad", "#f2f4f6"
SHADE = (10, 13, 16, 185)  # behind text on a picture
HISTORY = 60.0  # seconds of a camera's scores that are drawn
NARROWEST, WIDEST = 640, 1280  # of a picture, in pixels: small videos are enlarged, so that the text can be read


@dataclass(frozen=True)
class Caption:
    """What stands over the picture."""

    headline: str
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Scores:
    """The strip: one row per class over the time `span`."""

    names: Sequence[str]  # (rows,), the first on top
    times: np.ndarray  # (T,) seconds, rising
    probabilities: np.ndarray  # (T, rows), 0 to 1
    overall: Sequence[float]  # (rows,)
    span: tuple[float, float]  # seconds


def save(target: Path, video: Path, answers: Sequence[Answer]) -> None:
    """Draw a video with its answer, or its windows' answers: as a film (.mp4), or six frames as a picture (.png)."""
    rate, end = frame_rate(video), answers[-1].end
    scores = scores_of(answers, (0.0, end))
    if target.suffix.lower() == ".mp4":
        middles = [(answer.start + answer.end) / 2 for answer in answers]
        changes = [(one + two) / 2 for one, two in itertools.pairwise(middles)]
        captions = [caption_of(answer) for answer in answers]
        with open_film(target, rate) as write:
            for number, frame in enumerate(read_frames(video)):
                now = number / rate
                write(draw(frame, captions[bisect.bisect(changes, now)], scores, now))
        return
    chosen = np.linspace(0, max(0, round(end * rate) - 1), 6).round().astype(int).tolist()
    frames = {number: frame for number, frame in enumerate(read_frames(video)) if number in chosen}
    sheet = contact_sheet([frames[number] for number in chosen], [number / rate for number in chosen])
    caption = caption_of(answers[0])
    if len(answers) > 1:
        mean = np.mean([answer.opinions()["fused"] for answer in answers], axis=0)
        caption = Caption(answers[0].first_guess(mean), [f"mean of {len(answers)} windows"])
    with atomic_path(target) as temporary:
        Image.fromarray(draw(sheet, caption, scores, unit=1.25)).save(temporary, "PNG")


class LiveFilm:
    """A camera's film: each frame with what was last said of it, and the scores of the last minute.

    It begins with the first answer. `see` is called from the camera's thread, `hear` from another.
    """

    def __init__(self, write: Callable[[np.ndarray], None], rate: float) -> None:
        self.write, self.rate = write, rate
        self.answers: list[Answer] = []  # replaced, never changed: `see` may be reading it
        self.began: float | None = None
        self.written = 0

    def hear(self, answer: Answer) -> None:
        self.answers = [old for old in self.answers if old.end > answer.end - HISTORY] + [answer]

    def see(self, frame: np.ndarray, now: float) -> None:
        answers = self.answers
        if not answers:
            return
        scores = scores_of(answers, (max(0.0, now - HISTORY), now))
        picture = draw(frame, caption_of(answers[-1]), scores, now)
        self.began = now if self.began is None else self.began
        while self.written <= (now - self.began) * self.rate:  # cameras slow down in the dark, films don't
            self.write(picture)
            self.written += 1


def caption_of(answer: Answer) -> Caption:
    details = [f"{name}: {guess}" for name, guess in answer.alone().items()]
    return Caption(answer.first_guess(answer.opinions()["fused"]), details)


def scores_of(answers: Sequence[Answer], span: tuple[float, float]) -> Scores:
    """The best five classes over time: of one answer's samples, or of many windows, each at its middle."""
    fused = np.stack([answer.opinions()["fused"] for answer in answers])
    if len(answers) == 1:
        times, probabilities = answers[0].over_time()
    else:
        times, probabilities = np.array([(answer.start + answer.end) / 2 for answer in answers]), fused
    classes = best(fused.mean(0))
    values = fused.mean(0)[classes].tolist()
    return Scores([answers[0].names[k] for k in classes], times, probabilities[:, classes], values, span)


def draw(
    picture: np.ndarray, caption: Caption, scores: Scores, now: float | None = None, unit: float | None = None
) -> np.ndarray:
    """`picture`, RGB uint8 (height, width, 3), with its caption, and the strip below it; the same type.

    `now` puts a playhead at this second and its values at the right, in place of the overall ones. Sides are even,
    as video codecs want them. `unit` scales the text, 1 being right for a width of NARROWEST; None fits the width.
    """
    width = min(max(picture.shape[1], NARROWEST), WIDEST) // 2 * 2
    height = round(picture.shape[0] * width / picture.shape[1] / 2) * 2
    unit = unit or width / NARROWEST
    strip = _draw_strip(scores, 2 * width, 2 * unit, now).reduce(2)  # drawn at twice the size: smooth lines
    canvas = Image.new("RGB", (width, height + strip.height), PANEL)
    canvas.paste(strip, (0, height))
    image = Image.fromarray(picture)
    canvas.paste(image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC))
    _draw_caption(canvas, caption, unit)
    return np.asarray(canvas)


def contact_sheet(frames: Sequence[np.ndarray], times: Sequence[float]) -> np.ndarray:
    """Six pictures of one video in two rows of three, each with its second; RGB uint8 (height, WIDEST, 3)."""
    gap = 4
    width = (WIDEST - 2 * gap) // 3
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    joined = Image.new("RGB", (WIDEST, 2 * height + gap), PANEL)
    pen = ImageDraw.Draw(joined, "RGBA")
    for place, (frame, time) in enumerate(zip(frames, times, strict=True)):
        left, top = place % 3 * (width + gap), place // 3 * (height + gap)
        joined.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC), (left, top))
        corner, text, font = (left + width - 10, top + height - 10), f"{time:.1f} s", _font(18)
        x0, y0, x1, y1 = pen.textbbox(corner, text, font, anchor="rs")
        pen.rectangle((x0 - 5, y0 - 5, x1 + 5, y1 + 5), fill=SHADE)
        pen.text(corner, text, INK, font, anchor="rs")
    return np.asarray(joined)


def _draw_caption(canvas: Image.Image, caption: Caption, unit: float) -> None:
    pen = ImageDraw.Draw(canvas, "RGBA")
    lines = [(caption.headline, _font(round(26 * unit)), INK)]
    lines += [(detail, _font(round(15 * unit)), "#d5dae0") for detail in caption.details]
    pad, gap = round(10 * unit), round(6 * unit)
    heights = [font.getbbox("Ag")[3] for _, font, _ in lines]
    width = max(pen.textlength(text, font) for text, font, _ in lines) + 2 * pad
    height = sum(heights) + gap * (len(lines) - 1) + 2 * pad
    pen.rounded_rectangle((pad, pad, pad + width, pad + height), round(6 * unit), fill=SHADE)
    top = 2 * pad
    for (text, font, colour), line_height in zip(lines, heights, strict=True):
        pen.text((2 * pad, top), text, colour, font)
        top += line_height + gap


def _draw_strip(scores: Scores, width: int, unit: float, now: float | None) -> Image.Image:
    row, pad, head = 32 * unit, 10 * unit, 6 * unit
    floor = round(head + len(scores.names) * row)
    canvas = Image.new("RGB", (width, round((floor + 26 * unit) / 4) * 4), PANEL)
    pen = ImageDraw.Draw(canvas)
    font, small = _font(round(14 * unit)), _font(round(12 * unit))
    names_end = min(max(pen.textlength(name, font) for name in scores.names), width * 0.3)
    left, right = round(2 * pad + names_end), round(width - 2 * pad - pen.textlength("100 %", font))
    begin, end = scores.span
    columns = np.arange(left, right + 1)
    seconds = begin + (columns - left) / (right - left) * (end - begin)
    for place, name in enumerate(scores.names):
        colour = COLOURS[place % len(COLOURS)]
        base = round(head + (place + 1) * row)
        values = np.interp(seconds, scores.times, scores.probabilities[:, place])
        heights = base - values * (row - 5 * unit)
        outline = list(zip(columns.tolist(), heights.tolist(), strict=True))
        pen.polygon([(left, base), *outline, (right, base)], fill=_mixed(colour, PANEL, 0.45))
        pen.line(outline, fill=colour, width=max(1, round(1.5 * unit)))
        pen.line((left, base, right, base), fill=RULE)
        value = scores.overall[place]
        if now is not None:
            value = float(np.interp(now, scores.times, scores.probabilities[:, place]))
        middle = base - row / 2 + 2 * unit
        pen.text((pad, middle), _shortened(name, font, names_end), INK, font, anchor="lm")
        pen.text((width - pad, middle), f"{100 * value:.0f} %", colour, font, anchor="rm")
    for second in _ticks(begin, end):
        x = left + (second - begin) / (end - begin) * (right - left)
        pen.line((x, floor, x, floor + 4 * unit), fill=FAINT)
        pen.text((x, floor + 6 * unit), f"{second:g} s", FAINT, small, anchor="ma")
    if now is not None:
        x = left + (min(max(now, begin), end) - begin) / (end - begin) * (right - left)
        pen.line((x, 4 * unit, x, floor + 4 * unit), fill=INK, width=max(1, round(1.5 * unit)))
    return canvas


def _ticks(begin: float, end: float) -> list[float]:
    """About six round seconds from `begin` to `end`."""
    power = 10.0 ** np.floor(np.log10((end - begin) / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= (end - begin))
    return [float(round(k * step, 6)) for k in range(int(np.ceil(begin / step)), int(end / step + 1e-9) + 1)]


def _shortened(text: str, font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _mixed(colour: str, other: str, share: float) -> tuple[int, ...]:
    one, two = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (colour, other))
    return tuple(int(value) for value in np.round(one * share + two * (1 - share)))


@lru_cache
def _font(size: int):
    return ImageFont.load_default(size)


@contextlib.contextmanager
def open_film(target: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a picture, RGB uint8 (height, width, 3), to an MPEG-4 film at `target`.

    All pictures have the first one's size. The film appears when the block ends well.
    """
    cv2 = import_cv2()
    check_writable(target.parent)  # OpenCV does not say why it can't
    writer, written = cv2.VideoWriter(), 0
    with atomic_path(target) as temporary:
        path = temporary.with_suffix(".mp4")  # OpenCV chooses the container by the suffix

        def write(picture: np.ndarray) -> None:
            size = (picture.shape[1], picture.shape[0])
            nonlocal written
            if not writer.isOpened() and not writer.open(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size):
                path.write_bytes(bytes(1 << 16))  # a full disk says so here
                raise InputError(f"cannot write {target}: this OpenCV writes no MPEG-4; save a .png instead")
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            written += 1

        try:
            yield write
            writer.release()
            if round(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) != written:
                raise InputError(f"cannot write {target}: the film came out cut off, most likely for lack of disk")
            os.replace(path, temporary)
        finally:
            writer.release()
            path.unlink(missing_ok=True)
