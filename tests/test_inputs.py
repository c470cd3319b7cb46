"""Films of every kind that people have, as docs/inputs.md lists them: what is read, what is refused and why.

Each frame carries its number, so that a frame that is missing, black or of another place shows.
"""

import csv
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import extract, make_video, number_of, paint, write_film

from data.videos import VideoError, count_frames, decode, find_videos, frame_rate, read_frames
from recogniser.overlay import open_film
from utils import InputError

INTERLACED = {"flags": "+ildct+ilme"}
CONTAINERS = {  # suffix -> (what FFmpeg calls it, codec)
    ".mp4": (None, "libx264"), ".mov": (None, "mpeg4"), ".avi": (None, "mpeg4"), ".divx": ("avi", "mpeg4"),
    ".mkv": (None, "libx264"), ".webm": (None, "libvpx"), ".flv": (None, "flv"), ".f4v": ("mp4", "libx264"),
    ".mpg": (None, "mpeg2video"), ".vob": ("vob", "mpeg2video"), ".mod": ("vob", "mpeg2video"),
    ".m2v": ("mpeg2video", "mpeg2video"), ".ts": ("mpegts", "libx264"), ".mts": ("mpegts", "libx264"),
    ".wmv": ("asf", "wmv2"), ".asf": ("asf", "msmpeg4v2"), ".rm": ("rm", "rv10"), ".3gp": (None, "h263"),
    ".mxf": (None, "mpeg2video"), ".h264": ("h264", "libx264"), ".gif": (None, "gif"),
    ".y4m": (None, "wrapped_avframe"), ".mjpg": ("mjpeg", "mjpeg"),
}  # fmt: skip
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def numbers(path: Path) -> list[int]:
    return [number_of(frame) for frame in read_frames(path)]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_container_is_read_to_the_frame(suffix, tmp_path):
    form, codec = CONTAINERS[suffix]
    film = write_film(tmp_path / f"a{suffix}", codec, 12, form=form, pixels=PIXELS.get(codec, "yuv420p"))
    assert [video.folder for video in find_videos(tmp_path)] == ["a"]
    assert numbers(film) == list(range(12)) and count_frames(film) == 12
    np.testing.assert_allclose([frame.seconds for frame in decode(film)], np.arange(12) / 25, atol=2e-3)


FILMS = {  # suffix, codec, and what else write_film takes
    "interlaced H.264": (".mts", "libx264", {"form": "mpegts", "options": {"x264-params": "tff=1", **INTERLACED}}),
    "interlaced MPEG-2": (".mpg", "mpeg2video", {"options": INTERLACED}),
    "camcorder's DV": (".avi", "dvvideo", {"size": (720, 576)}),
    "ProRes": (".mov", "prores_ks", {"pixels": "yuv422p10le", "options": INTERLACED}),
    "10 bits": (".mkv", "ffv1", {"pixels": "yuv420p10le"}),
    "16 bits": (".mkv", "ffv1", {"pixels": "gbrp16le"}),
    "B-frames": (".mp4", "libx264", {"options": {"bf": "3"}}),
    "fragments, without a count": (".mp4", "libx264", {"container": {"movflags": "frag_keyframe+empty_moov"}}),
}


@pytest.mark.parametrize("kind", FILMS)
def test_kinds_of_coding(kind, tmp_path):
    suffix, codec, settings = FILMS[kind]
    film = write_film(tmp_path / f"a{suffix}", codec, **settings)
    assert numbers(film) == list(range(12)) and frame_rate(film) == 25


def long_sound(path: Path) -> Path:
    """A minute of sound with 12 frames."""
    with av.open(str(path.with_suffix(".mkv")), "w") as output:
        stream, sound = output.add_stream("mpeg4", 25), output.add_stream("pcm_s16le", 8000)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        sound.layout = "mono"
        for number in range(12):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(paint(number), format="rgb24")))
        output.mux(stream.encode(None))
        for second in range(60):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 8000, 8000 * second, Fraction(1, 8000)
            output.mux(sound.encode(silence))
    return path.with_suffix(".mkv")


def cover(path: Path) -> Path:
    """The film's poster comes first, as a stream of its own."""
    with av.open(str(path.with_suffix(".mp4")), "w") as output:
        poster, stream = output.add_stream("mjpeg", 25), output.add_stream("mpeg4", 25)
        poster.disposition = av.stream.Disposition.attached_pic
        for one, pixels in ((poster, "yuvj420p"), (stream, "yuv420p")):
            one.width, one.height, one.pix_fmt = 176, 144, pixels
        for number in range(12):
            picture = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux([*stream.encode(None), *poster.encode(av.VideoFrame.from_ndarray(paint(99), format="rgb24"))])
        output.mux(poster.encode(None))
    return path.with_suffix(".mp4")


def trimmed(path: Path) -> Path:
    """An edit list hides the first 12 of 24 frames."""
    whole = write_film(path.with_suffix(".nut"), "libx264", 24, options={"bf": "0", "g": "12"})
    path = path.with_suffix(".mp4")
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.pts -= round(12 / 25 / packet.time_base)
                packet.dts -= round(12 / 25 / packet.time_base)
                packet.stream = stream
                output.mux(packet)
    whole.unlink()
    return path


def trail_camera(path: Path) -> Path:
    """The first picture is of another pixel format than those after it."""
    with av.open(str(path.with_suffix(".avi")), "w") as output:
        stream = output.add_stream("mjpeg", 25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuvj420p"
        for number in range(12):
            coder = av.CodecContext.create("mjpeg", "w")
            coder.width, coder.height, coder.time_base = 176, 144, Fraction(1, 25)
            coder.pix_fmt = "yuvj422p" if number else "yuvj420p"
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts = number
            for packet in [*coder.encode(frame), *coder.encode(None)]:
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
                output.mux(packet)
    return path.with_suffix(".avi")


def latin1_title(path: Path) -> Path:
    film = write_film(path.with_suffix(".avi"), "mpeg4")
    data = film.read_bytes()
    title = b"INAM" + (6).to_bytes(4, "little") + b"caf\xe9!\0"
    info = b"LIST" + (4 + len(title)).to_bytes(4, "little") + b"INFO" + title
    place = data.index(b"LIST", data.index(b"hdrl"))  # before `movi`
    film.write_bytes(data[:4] + (len(data) - 8 + len(info)).to_bytes(4, "little") + data[8:place] + info + data[place:])
    return film


KINDS = [long_sound, cover, trimmed, trail_camera, latin1_title]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_kinds_of_films(kind, tmp_path, monkeypatch):
    film = kind(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert numbers(Path(film.name)) == list(range(12, 24) if kind is trimmed else range(12))
    assert frame_rate(film) == 25


@pytest.mark.parametrize(
    "matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, -1, -1, 0)]
)
def test_films_are_shown_upright(matrix, tmp_path):
    """Phones write what the sensor gives, and a matrix that turns and mirrors: (x, y) goes to (ax + cy, bx + dy)."""
    if not hasattr(av.VideoStream, "set_display_matrix"):
        pytest.skip("this PyAV can't write a matrix")
    a, b, c, d = (65536 * number for number in matrix)
    film = write_film(tmp_path / "a.mp4", "libx264", 3, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    (first, *_), picture = list(read_frames(film)), paint(0)
    rows, columns = np.mgrid[:144, :176]
    x, y = matrix[0] * columns + matrix[2] * rows, matrix[1] * columns + matrix[3] * rows
    x, y = x - x.min(), y - y.min()
    expected = np.empty((y.max() + 1, x.max() + 1, 3), np.uint8)
    expected[y, x] = picture
    assert first.shape == expected.shape
    assert abs(first.astype(int) - expected).mean() < 6


# --- damaged ---------------------------------------------------------------------------------------------


def cut_off(folder: Path, suffix: str) -> Path:
    """The first 6 tenths of a film of 60 frames."""
    form, codec = CONTAINERS[suffix]
    container = {"movflags": "faststart"} if suffix == ".mp4" else {}
    pixels = PIXELS.get(codec, "yuv420p")
    film = write_film(folder / f"a{suffix}", codec, 60, form=form, pixels=pixels, container=container)
    os.truncate(film, film.stat().st_size * 6 // 10)
    return film


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm", ".flv", ".mpg", ".wmv", ".rm"])
def test_a_film_that_is_cut_off_is_told_as_that(suffix, tmp_path):
    film = cut_off(tmp_path, suffix)
    for _ in range(2):  # the second one is told as the first was
        found = []
        with pytest.raises(VideoError, match=r"cut off or damaged: [23]\d frames could be decoded"):
            for frame in read_frames(film):
                found.append(number_of(frame))
        assert found[:20] == list(range(20))


@pytest.mark.parametrize("suffix", [".gif", ".ts", ".mxf", ".y4m"])
def test_what_has_no_end_that_a_reader_would_miss_is_read_as_far_as_it_goes(suffix, tmp_path):
    found = numbers(cut_off(tmp_path, suffix))
    assert 30 < len(found) < 40 and found[:30] == list(range(30))


def test_a_film_cut_between_two_frames_lacks_those_that_its_index_lists(tmp_path):
    film = write_film(tmp_path / "a.mp4", "mpeg4", 30, container={"movflags": "faststart"})
    with av.open(str(film)) as opened:
        ends = [packet.pos + packet.size for packet in opened.demux(video=0) if packet.size]
    film.write_bytes(film.read_bytes()[: ends[17]])
    with pytest.raises(VideoError, match="cut off or damaged: 18 frames"):
        list(read_frames(film))


def test_one_damaged_frame_costs_no_more_than_its_own(tmp_path):
    film = write_film(tmp_path / "a.avi", "mjpeg", 40, pixels="yuvj420p")
    with av.open(str(film)) as opened:
        places = [packet.pos for packet in opened.demux(video=0) if packet.size]
    data = bytearray(film.read_bytes())
    start = data.index(b"\xff\xd8", places[20])
    data[start : start + 300] = bytes(300)
    film.write_bytes(data)
    found = numbers(film)
    assert found[:20] == list(range(20)) and found[-15:] == list(range(25, 40)) and len(found) >= 38


def test_what_is_no_film_is_refused_in_words(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{write_film(tmp_path / 'b.ts', form='mpegts')}\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        sound = output.add_stream("aac", 8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        output.mux([*sound.encode(silence), *sound.encode(None)])
    write_film(tmp_path / "thin.mp4", "mpeg4", size=(2, 800))
    for name, words in {
        "text": "not a video", "list": "cannot be opened", "empty": "the file is empty", "folder": "is no file",
        "sound": "holds no film", "none": "no such file", "thin": "is 2 x 800 pixels, and 256 x 102,400 scaled",
    }.items():  # fmt: skip
        with pytest.raises(VideoError, match=words):
            list(read_frames(tmp_path / f"{name}.mp4", 256))


# --- as a user extracts them -----------------------------------------------------------------------------


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    """Relative names, as a user gives them: read, and written as predict.py --save does."""
    monkeypatch.chdir(tmp_path)
    with open_film(Path("12:30.mp4"), 25) as write:
        for number in range(12):
            write(paint(number))
    assert numbers(Path("12:30.mp4")) == list(range(12)) and os.listdir() == ["12:30.mp4"]


def test_each_videos_own_line_and_the_rest_goes_on(tmp_path):
    """Names that no list can hold, damaged and odd films, and files that are no videos, all in one folder."""
    root, out = tmp_path / "videos", tmp_path / "out"
    write_film(root / "good.mp4")
    write_film(root / "thin.mp4", "mpeg4", size=(2, 800))
    write_film(root / "12:30.mp4")
    make_video(root / "MJPEG.AVI", 0, 12)
    os.rename(write_film(root / "latin.mp4"), os.fsencode(root / "caf") + b"\xe9.mp4")
    for name in ("notes.txt", "a.zip"):
        (root / name).touch()
    said = extract("rgb", root, out, "--sampling-rate", 1, code=1)
    assert "left out: 2 files not named like videos (a.zip, notes.txt)" in said
    for name in ("good", "12:30", "MJPEG"):
        assert len(list((out / name).iterdir())) == 12
    with open(out / "failed.csv", newline="", encoding="utf-8") as file:
        failed = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    assert failed.keys() == {"thin.mp4", "caf\\udce9.mp4"}
    assert "2 x 800 pixels" in failed["thin.mp4"] and "not UTF-8" in failed["caf\\udce9.mp4"]
    assert number_of(np.asarray(Image.open(out / "good" / "frame000008.jpg"))) == 7
    assert numbers(Path(os.fsdecode(os.fsencode(root / "caf") + b"\xe9.mp4"))) == list(range(12))  # as predict.py does
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.txt").touch()
    with pytest.raises(InputError, match=r"holds no video, but 1 file not named like videos \(a\.txt\)"):
        find_videos(tmp_path / "others")
