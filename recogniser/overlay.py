"""An answer drawn over its video: the labels on the picture, below it a strip of the classes' scores over time.

Pillow draws, and PyAV writes films.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.videos import count_frames, decode, frame_rate, import_av
from recogniser.answers import Answer, best, softmax
from utils import atomic_path, check_writable, printable

# Okabe and Ito's palette, its dark colours lightened for the dark panel: told apart with any colour vision.
COLOURS = ("#f0a020", "#56b4e9", "#2fc79a", "#f0e442", "#d98bb9")
PANEL, RULE, FAINT, INK = "#15191e", "#353c45", "#98a2ad", "#f2f4f6"
SHADE = (10, 13, 16, 185)  # behind text on a picture
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
    scores = scores_of(answers, (0.0, answers[-1].end))
    whole = "whole video" if len(answers) == 1 else ""
    if target.suffix.lower() == ".mp4":
        middles = [(answer.start + answer.end) / 2 for answer in answers]
        changes = [(one + two) / 2 for one, two in itertools.pairwise(middles)]
        captions = [caption_of(answer, of=whole) for answer in answers]
        rate = frame_rate(video)
        with open_film(target, rate) as write:
            picture, written = None, 0
            for frame in decode(video):
                while picture is not None and written < frame.seconds * rate - 0.5:  # where the rate varies
                    write(picture)
                    written += 1
                caption = captions[bisect.bisect(changes, frame.seconds)]
                picture, written = draw(frame.picture(), caption, scores, frame.seconds), written + 1
                write(picture)
        return
    chosen = np.linspace(0, max(0, count_frames(video) - 1), 6).round().astype(int).tolist()
    frames = {n: (frame.picture(), frame.seconds) for n, frame in enumerate(decode(video)) if n in chosen}
    shown = [frames.get(number, frames[max(frames)]) for number in chosen]
    caption = caption_of(answers[0], of=whole)
    if len(answers) > 1:
        mean = np.mean([answer.probabilities()["fused"] for answer in answers], axis=0)
        caption = Caption(answers[0].first_guess(mean), [f"mean of {len(answers)} windows"])
    room = caption_height(caption, unit=1.25)
    sheet = contact_sheet([picture for picture, _ in shown], [second for _, second in shown], room)
    with atomic_path(target) as temporary:
        Image.fromarray(draw(sheet, caption, scores, unit=1.25)).save(temporary, "PNG")


@contextlib.contextmanager
def open_film(target: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a picture to a film of `rate` pictures a second at `target`.

    Pictures are RGB uint8 (height, width, 3), all of one size with even sides. The film is H.264, which browsers
    play, where PyAV's FFmpeg has it, else MPEG-4. It appears when the block ends well.
    """
    av = import_av()
    check_writable(target.parent)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(target)).absolute()  # relative, `a:b` would name a protocol
        container = stack.enter_context(av.open(str(temporary), "w", "mp4", options={"movflags": "faststart"}))
        pace = Fraction(rate).limit_denominator(1001)
        if "libx264" in av.codecs_available:
            stream = container.add_stream("libx264", pace, options={"crf": "20", "preset": "veryfast"})
        else:
            stream = container.add_stream("mpeg4", pace, bit_rate=8_000_000)
        stream.pix_fmt = "yuv420p"  # what browsers take

        def write(picture: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield write
        container.mux(stream.encode(None))


def caption_of(answer: Answer, of: str = "") -> Caption:
    """The answer, what it is of (its seconds, unless said) and what each stream says."""
    details = [f"{name}: {guess}" for name, guess in answer.alone().items()]
    return Caption(answer.verdict(), [of or f"{answer.start:.1f} to {answer.end:.1f} s", *details])


def scores_of(answers: Sequence[Answer], span: tuple[float, float]) -> Scores:
    """The best five classes over time: of one answer's samples, or of many windows, each at its middle."""
    fused = np.stack([answer.probabilities()["fused"] for answer in answers])
    if len(answers) == 1:
        times, logits = answers[0].over_time()
        probabilities = softmax(logits)
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
    height = max(2, round(picture.shape[0] * width / picture.shape[1] / 2) * 2)
    unit = unit or width / NARROWEST
    strip = _draw_strip(scores, 2 * width, 2 * unit, now).reduce(2)  # drawn at twice the size: smooth lines
    canvas = Image.new("RGB", (width, height + strip.height), PANEL)
    canvas.paste(strip, (0, height))
    image = Image.fromarray(picture)
    canvas.paste(image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC))
    _draw_caption(canvas, caption, unit)
    return np.asarray(canvas)


def contact_sheet(frames: Sequence[np.ndarray], times: Sequence[float], room: int) -> np.ndarray:
    """Six pictures of one video in two rows of three, each with its second; RGB uint8 (height, WIDEST, 3).

    Above them is `room` for a caption, in pixels.
    """
    gap = 4
    width = (WIDEST - 2 * gap) // 3
    height = max(1, round(frames[0].shape[0] * width / frames[0].shape[1]))
    joined = Image.new("RGB", (WIDEST, room + 2 * height + gap), PANEL)
    pen = ImageDraw.Draw(joined, "RGBA")
    for place, (frame, time) in enumerate(zip(frames, times, strict=True)):
        left, top = place % 3 * (width + gap), room + place // 3 * (height + gap)
        joined.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC), (left, top))
        corner, text, font = (left + width - 10, top + height - 10), f"{time:.1f} s", font_of(18)
        x0, y0, x1, y1 = pen.textbbox(corner, text, font, anchor="rs")
        pen.rectangle((x0 - 5, y0 - 5, x1 + 5, y1 + 5), fill=SHADE)
        pen.text(corner, text, INK, font, anchor="rs")
    return np.asarray(joined)


HEADLINE, DETAIL, PAD, GAP = 26, 15, 10, 6  # of a caption, in pixels at a unit of 1


def caption_height(caption: Caption, unit: float) -> int:
    """How far down from the picture's top a caption reaches, in pixels."""
    lines = HEADLINE + len(caption.details) * (DETAIL + GAP)
    return round((lines + 4 * PAD) * unit / 2) * 2


def _draw_caption(canvas: Image.Image, caption: Caption, unit: float) -> None:
    pen = ImageDraw.Draw(canvas, "RGBA")
    lines = [(caption.headline, HEADLINE, INK), *((detail, DETAIL, "#d5dae0") for detail in caption.details)]
    drawn = [(printable(text), font_of(round(size * unit)), size * unit, colour) for text, size, colour in lines]
    pad, gap = round(PAD * unit), GAP * unit
    width = max(pen.textlength(text, font) for text, font, *_ in drawn) + 2 * pad
    height = caption_height(caption, unit) - 2 * pad
    pen.rounded_rectangle((pad, pad, pad + width, pad + height), round(6 * unit), fill=SHADE)
    base = 2.0 * pad
    for text, font, size, colour in drawn:
        base += size
        pen.text((2 * pad, round(base - size / 6)), text, colour, font, anchor="ls")
        base += gap


def _draw_strip(scores: Scores, width: int, unit: float, now: float | None) -> Image.Image:
    row, pad, head = 32 * unit, 10 * unit, 18 * unit
    floor = round(head + len(scores.names) * row)
    canvas = Image.new("RGB", (width, round((floor + 26 * unit) / 4) * 4), PANEL)
    pen = ImageDraw.Draw(canvas, "RGBA")
    font, small = (font_of(round(size * unit)) for size in (14, 12))
    names = [printable(name) for name in scores.names]
    names_end = min(max(pen.textlength(name, font) for name in names), width * 0.3)
    left, right = round(2 * pad + names_end), round(width - 2 * pad - pen.textlength("100 %", font))
    begin, end = scores.span
    columns = np.arange(left, right + 1)
    seconds = begin + (columns - left) / (right - left) * (end - begin)
    pen.text((width - pad, 3 * unit), "whole video" if now is None else "this moment", FAINT, small, anchor="ra")
    for place, name in enumerate(names):
        colour = COLOURS[place % len(COLOURS)]
        base = round(head + (place + 1) * row)
        values = np.interp(seconds, scores.times, scores.probabilities[:, place])
        heights = base - values * (row - 5 * unit)
        outline = list(zip(columns.tolist(), heights.tolist(), strict=True))
        pen.polygon([(left, base), *outline, (right, base)], fill=f"{colour}73")  # 45 % over the panel
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


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans as matplotlib ships it, `size` pixels high; a box stands where it has no sign."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(found.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"), size)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
