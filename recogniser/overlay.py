"""Draw an answer over its video: the streams' guesses on the picture, the class scores over time below it.

Pillow draws, and PyAV writes films.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.special import softmax

from data.videos import decode, frame_rate, import_av
from recogniser.answers import Answer, best
from utils import atomic_path, check_writable, printable

# Okabe and Ito's palette, its dark colours lightened for the dark panel: distinct with any colour vision.
COLOURS = ("#f0a020", "#56b4e9", "#2fc79a", "#f0e442", "#d98bb9")
PANEL, FAINT, INK = "#15191e", "#98a2ad", "#f2f4f6"
SHADE = (10, 13, 16, 185)  # behind text on a picture
NARROWEST, WIDEST = 640, 1280  # pixels: small videos are enlarged, so that the text can be read


def save(target: Path, video: Path, answers: Sequence[Answer]) -> None:
    """Draw a video's answer, or its windows' answers, over all its frames, and write the film to `target`."""
    rate, written = frame_rate(video), 0
    strip, drawn = None, None
    with open_film(target, rate) as write:
        for frame in decode(video):
            while drawn is not None and written < frame.seconds * rate - 0.5:  # if the rate varies
                write(drawn)
                written += 1
            picture = Image.fromarray(frame.picture())
            if strip is None:
                width = min(max(picture.width, NARROWEST), WIDEST) // 2 * 2
                height = max(2, round(picture.height * width / picture.width / 2) * 2)  # even, as codecs want them
                strip = Strip(answers, width)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            drawn = draw(picture, strip, frame.seconds)
            write(drawn)
            written += 1


@contextlib.contextmanager
def open_film(target: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a picture to a H.264 film at `target` with `rate` pictures per second.

    Pictures are RGB uint8 (height, width, 3), all of one size with even sides. The film appears only if the
    block ends without an error.
    """
    av = import_av()
    check_writable(target.parent)
    options = {"movflags": "faststart"}
    # absolute, because FFmpeg reads a relative `a:b` as a protocol
    with atomic_path(target.absolute()) as path, av.open(str(path), "w", "mp4", options=options) as film:
        pace = Fraction(rate).limit_denominator(1001)
        stream = film.add_stream("libx264", pace, options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"  # what browsers take

        def write(picture: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield write
        film.mux(stream.encode(None))


def draw(picture: Image.Image, strip: "Strip", now: float) -> np.ndarray:
    """Return the picture with the answer of second `now`, and the strip below: RGB uint8 (height, width, 3)."""
    below, unit = strip.at(now), strip.unit
    answer = strip.answers[int(np.abs(strip.middles - now).argmin())]
    label = "whole video" if len(strip.answers) == 1 else f"{answer.start:.1f} to {answer.end:.1f} s"
    canvas = Image.new("RGB", (picture.width, picture.height + below.height))
    canvas.paste(picture)
    canvas.paste(below, (0, picture.height))
    pen, pad = ImageDraw.Draw(canvas, "RGBA"), 10 * unit
    streams = [f"{name}: {guess}" for name, guess in answer.alone().items()]
    top, lines = 1.5 * pad, []
    for text, size in (answer.guess(), 26), *((text, 14) for text in (*streams, label)):
        lines.append(((2 * pad, top), printable(text), font_of(round(size * unit))))
        top += (size + 6) * unit
    right = max(pen.textlength(text, font) for _, text, font in lines) + 3 * pad
    pen.rounded_rectangle((pad, pad, right, top + pad / 2), pad / 2, fill=SHADE)
    for at, text, font in lines:
        pen.text(at, text, INK, font)
    return np.asarray(canvas)


class Strip:
    """The probabilities of the best five classes over time, one row each, `width` pixels wide.

    They come from one answer's clips, or from many windows, each at its middle.
    """

    def __init__(self, answers: Sequence[Answer], width: int) -> None:
        self.answers, self.unit, self.end = answers, width / NARROWEST, answers[-1].end
        self.middles = times = np.array([(answer.start + answer.end) / 2 for answer in answers])  # seconds
        shares = np.stack([answer.probabilities()["fused"] for answer in answers])
        classes = best(shares.mean(0))
        names = [printable(answers[0].names[label]) for label in classes]
        if len(answers) == 1:
            times, logits = answers[0].over_time()
            shares = softmax(logits, axis=-1)
        self.seconds = np.linspace(0, self.end, width)
        self.shares = [np.interp(self.seconds, times, shares[:, label]) for label in classes]

        rows, dots = len(classes), 100 * self.unit  # per inch
        figure = Figure((width / dots, 0.4 + 0.32 * rows), dots, facecolor=PANEL)
        axes = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
        left, low = min(0.3, 0.04 + 0.0125 * max(map(len, names))), 0.28 / (0.4 + 0.32 * rows)
        figure.subplots_adjust(left, low, 0.92, 1 - low / 3, hspace=0.2)
        for axis, name, values, colour in zip(axes, names, self.shares, COLOURS, strict=False):
            axis.fill_between(self.seconds, values, color=colour, alpha=0.6, linewidth=0)
            axis.set(xlim=(0, self.end), ylim=(0, 1.05), yticks=(), frame_on=False)
            axis.tick_params(colors=FAINT, labelsize=8, length=0)
            name = name if len(name) < 21 else f"{name[:19]}…"
            axis.annotate(name, (-0.015, 0.5), xycoords="axes fraction", color=INK, size=10, ha="right", va="center")
        axes[-1].xaxis.set_major_formatter("{x:g} s")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[:, :, :3]
        self.image = Image.fromarray(drawn[: len(drawn) // 2 * 2])
        boxes = [axis.get_window_extent() for axis in axes]
        self.left, self.right = boxes[0].x0, boxes[0].x1
        self.rows = [len(drawn) - (box.y0 + box.y1) / 2 for box in boxes]  # middles, in pixels from the top

    def at(self, now: float) -> Image.Image:
        """Return the strip with a playhead at this second, and the values there."""
        image = self.image.copy()
        pen, font = ImageDraw.Draw(image), font_of(round(14 * self.unit))
        x, half = np.interp(now, (0, self.end), (self.left, self.right)), self.rows[0]
        pen.line((x, half / 3, x, self.rows[-1] + half), fill=INK, width=max(1, round(1.5 * self.unit)))
        for row, values, colour in zip(self.rows, self.shares, COLOURS, strict=False):
            share = f"{100 * np.interp(now, self.seconds, values):.0f} %"
            pen.text((image.width - 6 * self.unit, row), share, colour, font, anchor="rm")
        return image


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans, `size` pixels high. Characters that it lacks are drawn as boxes."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
