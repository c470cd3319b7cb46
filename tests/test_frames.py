"""Every layout as tiny files: where the frames are, and how many."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from frame_files import make, numbered
from PIL import Image

from dataloader import frames
from dataloader.frames import find, find_sources
from dataloader.layouts import index_frames
from dataloader.lists import Video
from utils import InputError


def existing(root: Path, frames) -> bool:
    return all(frames.path(root, i).is_file() for i in range(frames.count))


def v(name: str) -> Video:
    return Video(name, 0, name)


def test_tsfusion(tmp_path):
    rgb, flow = tmp_path / "jpegs_256", tmp_path / "tvl1_flow"
    for name, count in (("v_Biking_g01_c01", 12), ("v_HandstandPushups_g01_c02", 30)):
        make(rgb / name, *numbered("frame%06d.jpg", 1, count))
        for channel in "uv":
            make(flow / channel / name, *numbered("frame%06d.jpg", 1, count - 1))
    # strays of the published archives, and those of file managers
    make(flow / "u", "v_Biking_g01_c01.bin", "v_HandstandPushups_g01_c02.bin")
    make(flow / "u" / "v_Biking_g01_c01" / "TSP flows", *numbered("frame%06d.jpg", 1, 5))
    make(rgb / "v_Biking_g01_c01", "Thumbs.db", ".DS_Store", "._frame000001.jpg", "frame.jpg", "overview_1.jpg")
    make(rgb / ".partial" / "v_Biking_g01_c02", *numbered("frame%06d.jpg", 1, 5))

    index = index_frames(rgb, "rgb")
    assert index.names == ["Biking_g01_c01", "HandstandPushups_g01_c02"]
    frames = find(index, "Biking/v_Biking_g01_c01.avi")
    assert frames.count == 12
    assert frames.path(rgb, 0) == rgb / "v_Biking_g01_c01" / "frame000001.jpg"
    assert frames.path(rgb, 11) == rgb / "v_Biking_g01_c01" / "frame000012.jpg"
    with pytest.raises(IndexError):
        frames.path(rgb, 12)
    for spelling in ("x/v_HandStandPushups_g01_c02.avi", "HandstandPushups_g01_c02", "V_HANDSTANDPUSHUPS_G01_C02"):
        assert find(index, spelling).count == 30

    assert index_frames(flow, "flow").names == index.names
    x, y = find(index_frames(flow, "flow"), "HandstandPushups/v_HandStandPushups_g01_c02.avi")
    assert (x.count, y.count) == (29, 29)
    assert x.path(flow, 28) == flow / "u" / "v_HandstandPushups_g01_c02" / "frame000029.jpg"
    assert y.path(flow, 0) == flow / "v" / "v_HandstandPushups_g01_c02" / "frame000001.jpg"
    assert pickle.loads(pickle.dumps(x)) == x  # it travels to loader processes


def test_original_two_stream_layout(tmp_path):
    """Numbers aren't padded, so ten comes before two in a listing."""
    make(tmp_path / "Biking" / "separated_images" / "v_Biking_g01_c01", *numbered("v_Biking_g01_c01_%d.jpg", 1, 123))
    frames = find(index_frames(tmp_path, "rgb"), "Biking_g01_c01")
    assert (frames.count, frames.digits) == (123, 0)
    assert [frames.path(tmp_path, i).name for i in (0, 8, 9, 122)] == [
        f"v_Biking_g01_c01_{i}.jpg" for i in (1, 9, 10, 123)
    ]
    assert existing(tmp_path, frames)


@pytest.mark.parametrize("start, folder", [(0, "v_Biking_g01_c01"), (1, "Biking/v_Biking_g01_c01")])
def test_dense_flow_and_mmaction_in_any_case(tmp_path, start, folder):
    x_name = "flow_x_%05d.jpg" if start else "FLOW_X_%05d.JPG"
    make(tmp_path / folder, *numbered("img_%05d.jpg", start, 13), *numbered(x_name, start, 12),
         *numbered("flow_y_%05d.jpg", start, 12))  # fmt: skip
    make(tmp_path / ".done", "v_Biking_g01_c01")
    rgb, flow = index_frames(tmp_path, "rgb"), index_frames(tmp_path, "flow")
    assert set(flow.videos["Biking_g01_c01"]) == {"rgb", "x", "y"}
    frames, (x, y) = find(rgb, "Biking_g01_c01"), find(flow, "Biking_g01_c01")
    assert (frames.start, frames.count, x.count, y.count) == (start, 13, 12, 12)
    assert frames.path(tmp_path, 0) == tmp_path / folder / f"img_{start:05d}.jpg"
    assert x.path(tmp_path, 11) == tmp_path / folder / (x_name % (start + 11))
    assert y.path(tmp_path, 11) == tmp_path / folder / f"flow_y_{start + 11:05d}.jpg"


@pytest.mark.parametrize("name", ["%05d.jpg", "MVI 0012 %03d.WebP"])
def test_any_one_name_with_numbers(tmp_path, name):
    make(tmp_path / "rgb/run/1", *numbered(name, 1, 12))
    make(tmp_path / "rgb/run", "preview1.jpg")  # beside folders: no video
    for channel in "uv":
        make(tmp_path / "flow" / channel / "run/1", *numbered(name, 0, 11))
    index = index_frames(tmp_path / "rgb", "rgb")
    assert index.names == ["run/1"] and existing(index.root, find(index, "run/1.avi"))
    x, y = find(index_frames(tmp_path / "flow", "flow"), "run/1")
    assert (x.folder, y.folder, x.start, y.count) == ("u/run/1", "v/run/1", 0, 11)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_frames_of_other_colours_are_converted_and_that_is_said_once(mode, monkeypatch, capsys):
    monkeypatch.setattr(frames, "_said", bytearray(1))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode in ("L", "CMYK") else "PNG")
    wanted = np.asarray(Image.open(buffer).convert("RGB"))
    for _ in range(2):
        np.testing.assert_array_equal(frames.decode_rgb(buffer.getvalue(), "a/x.jpg"), wanted)
    assert capsys.readouterr().err.count("converted to RGB") == 1


def test_frames_of_16_bits_are_refused_as_pillow_would_clip_them():
    Image.fromarray(np.full((12, 16), 30000, np.uint16)).save(buffer := io.BytesIO(), "PNG")
    with pytest.raises(InputError, match=r"a/x\.png is I;16, and frames have 8 bits"):
        frames.decode_rgb(buffer.getvalue(), "a/x.png")


def test_own_videos(tmp_path):
    rgb, flow = tmp_path / "rgb", tmp_path / "flow"
    for folder in ("fight/fi 001.v2", "u/a_kick_f_0", "v/#1; [x]", "deep/er/fi002"):
        make(rgb / folder, *numbered("frame%06d.jpg", 1, 11))
        for channel in "uv":
            make(flow / channel / folder, *numbered("frame%06d.jpg", 1, 10))
    for root, kind in ((rgb, "rgb"), (flow, "flow")):
        index = index_frames(root, kind)
        assert index.names == ["deep/er/fi002", "fight/fi 001.v2", "u/a_kick_f_0", "v/#1; [x]"]
        for name in ("fight/fi 001.v2.avi", "FIGHT/fi 001.v2", "/data/u/a_kick_f_0.mp4", "v/#1; [x].avi", "er/fi002"):
            assert find(index, name)
        for name in ("nofight/fi 001.v2", "other/fi002"):
            with pytest.raises(InputError, match="holds no"):
                find(index, name)
    make(tmp_path / "accents/cafe\u0301/a", *numbered("frame%06d.jpg", 1, 11))
    assert find(index_frames(tmp_path / "accents", "rgb"), "caf\u00e9/a.avi").count == 11
    make(tmp_path / "flat" / "fi001", *numbered("img_%05d.jpg", 1, 11))
    assert find(index_frames(tmp_path / "flat", "rgb"), "fight/fi001.avi").count == 11


def test_own_videos_deeper_in_the_tree(tmp_path):
    for channel in "uv":
        make(tmp_path / "tvl1" / channel / "fight/fi001", *numbered("frame%06d.jpg", 1, 10))
    index = index_frames(tmp_path, "flow")
    assert index.names == ["tvl1/fight/fi001"]
    assert [frames.folder for frames in find(index, "fight/fi001.avi")] == ["tvl1/u/fight/fi001", "tvl1/v/fight/fi001"]
    make(tmp_path / "rgb/fight/separated_images/fi001", *numbered("fi001_%d.jpg", 1, 11))
    assert index_frames(tmp_path / "rgb", "rgb").names == ["fight/fi001"]
    make(tmp_path / "rgb/old/fight/fi001", *numbered("frame%06d.jpg", 1, 11))
    make(tmp_path / "rgb/new/fight/fi001", *numbered("frame%06d.jpg", 1, 12))
    index = index_frames(tmp_path / "rgb", "rgb")
    assert find(index, "fight/fi001").count == 11 and find(index, "new/fight/fi001").count == 12
    for folder in ("old", "new"):
        make(tmp_path / "rgb" / folder / "sit/s1", *numbered("frame%06d.jpg", 1, 11))
    with pytest.raises(InputError, match="holds no RGB frames of sit/s1"):  # which of the two?
        find(index_frames(tmp_path / "rgb", "rgb"), "sit/s1.avi")


@pytest.mark.parametrize(
    "names, words",
    [
        (numbered("frame%06d.jpg", 1, 20)[:7] + numbered("frame%06d.jpg", 9, 12), "frame000008.jpg is missing"),
        (numbered("frame%06d.jpg", 5, 20), "frame000001.jpg is missing"),
        (["frame1.jpg", "frame02.jpg", "frame3.jpg"], "frame2.jpg is missing"),
        (numbered("frame%06d.jpg", 1, 20) + numbered("frame%06d.png", 1, 20), "several sequences"),
        ([*numbered("frame%06d.jpg", 1, 5), "frame99999999999999.jpg"], "frame000006.jpg is missing"),
    ],
)
def test_a_broken_sequence_is_an_error_of_its_video_only(tmp_path, names, words):
    make(tmp_path / "v_Biking_g01_c01", *names)
    make(tmp_path / "v_Biking_g01_c02", *numbered("frame%06d.jpg", 1, 11))
    index = index_frames(tmp_path, "rgb")
    assert index.names == ["Biking_g01_c01", "Biking_g01_c02"]
    assert find(index, "Biking_g01_c02").count == 11
    with pytest.raises(InputError, match=words) as caught:
        find(index, "Biking_g01_c01")
    assert "v_Biking_g01_c01" in str(caught.value)


def test_u_and_v_must_agree_and_a_gap_in_u_is_told_first(tmp_path):
    for channel, counts in (("u", (20, 20, 20, 0, 3)), ("v", (20, 19, 0, 20, 3))):
        for clip, count in enumerate(counts, 1):
            if count:
                make(tmp_path / channel / f"v_Biking_g01_c{clip:02d}", *numbered("frame%06d.jpg", 1, count))
    (tmp_path / "u/v_Biking_g01_c05/frame000002.jpg").unlink()
    index = index_frames(tmp_path, "flow")
    assert find(index, "Biking_g01_c01")[1].count == 20
    for clip, told in ((2, r"20 u \(x\) but 19 v"), (3, r"20 u \(x\) but 0 v"), (5, "000002.jpg is missing")):
        with pytest.raises(InputError, match=rf"Biking_g01_c0{clip}.*{told}"):
            find(index, f"Biking_g01_c0{clip}")
    assert list(index.videos) == ["Biking_g01_c01"] and len(index.names) == 5


def test_one_video_in_two_folders(tmp_path):
    for folder in ("v_HandStandPushups_g01_c01", "old/v_HandstandPushups_g01_c01"):
        make(tmp_path / folder, *numbered("frame%06d.jpg", 1, 11))
    with pytest.raises(InputError, match="old/v_HandstandPushups_g01_c01.*keep one"):
        find(index_frames(tmp_path, "rgb"), "HandstandPushups_g01_c01")


def test_wrong_folders(tmp_path):
    make(tmp_path, "file")
    for absent in ("nowhere", "file"):
        with pytest.raises(InputError, match=r"there is no folder.*data/extract_rgb\.py"):
            index_frames(tmp_path / absent, "rgb")
    make(tmp_path / "run/1", "first.jpg", "last.jpg")
    with pytest.raises(InputError, match=r"in a known layout \(VIDEO/frame000001.jpg, .*\), but run/1/\w+.jpg; make"):
        index_frames(tmp_path, "rgb")
    make(tmp_path / "rgb" / "v_Biking_g01_c01", *numbered("frame%06d.jpg", 1, 11))
    with pytest.raises(InputError, match="holds no optical flow"):
        index_frames(tmp_path / "rgb", "flow")
    (tmp_path / "rgb" / "extraction.json").write_text('{"kind": "flow", "version": 1, "settings": {}}')
    for channel in "uv":
        make(tmp_path / "flow" / channel / "v_Biking_g01_c01", *numbered("frame%06d.jpg", 1, 11))
    for folder in ("rgb", "flow"):
        with pytest.raises(InputError, match="holds optical flow, not RGB frames"):
            index_frames(tmp_path / folder, "rgb")
    (tmp_path / "flow/extraction.json").write_text('{"kind": "depth"}')
    with pytest.raises(InputError, match=r"extraction\.json cannot be read .*; remove it or extract again"):
        index_frames(tmp_path / "flow", "flow")


def test_a_folder_called_u_is_no_channel_where_the_names_tell_it(tmp_path):
    make(tmp_path / "u/fi001", *numbered("flow_x_%05d.jpg", 1, 10), *numbered("flow_y_%05d.jpg", 1, 10))
    index = index_frames(tmp_path, "flow")
    assert index.names == ["u/fi001"] and find(index, "u/fi001")[1].prefix == "flow_y_"


def test_a_loop_of_links_ends(tmp_path):
    make(tmp_path / "v_Biking_g01_c01", *numbered("frame%06d.jpg", 1, 11))
    try:
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    assert index_frames(tmp_path, "rgb").names == ["Biking_g01_c01"]


# videos of a split


def test_what_is_missing_is_counted_and_named(tmp_path, capsys):
    for clip in (1, 2):
        make(tmp_path / f"v_Biking_g01_c{clip:02d}", *numbered("frame%06d.jpg", 1, 10 + clip))
    make(tmp_path / "v_Biking_g01_c03", "frame000002.jpg")
    index = index_frames(tmp_path, "rgb")
    videos = [Video(f"Biking_g01_c{i:02d}", 10, f"Biking/v_Biking_g01_c{i:02d}.avi") for i in range(5, 0, -1)]
    with pytest.raises(InputError) as caught:
        find_sources(index, videos)
    message = str(caught.value)
    assert "3 of 5 listed videos can't be used" in message
    assert "Biking/v_Biking_g01_c05.avi, Biking/v_Biking_g01_c04.avi, v_Biking_g01_c03: frame000001.jpg is" in message
    assert "--allow-missing" in message and "\n" not in message

    found = find_sources(index, videos, allow_missing=True)
    assert [(source.video.name, source.count) for source in found] == [("Biking_g01_c02", 12), ("Biking_g01_c01", 11)]
    assert "3 of 5" in capsys.readouterr().out
    with pytest.raises(InputError, match="3 of 3"):
        find_sources(index, videos[:3], allow_missing=True)


def test_a_test_video_is_never_taken_for_the_training_video_of_its_name(tmp_path):
    make(tmp_path / "run/1", *numbered("frame%06d.jpg", 1, 11))
    make(tmp_path / "run/rec1/2", *numbered("frame%06d.jpg", 1, 11))
    for key in ("test/run/1", "run/rec2/2"):
        with pytest.raises(InputError, match="1 of 1 listed videos can't be used"):
            find_sources(index_frames(tmp_path, "rgb"), [Video(key, 0, f"{key}.avi")])
    make(tmp_path / "test/run/1", *numbered("frame%06d.jpg", 1, 12))
    (found,) = find_sources(index_frames(tmp_path, "rgb"), [Video("test/run/1", 0, "test/run/1.avi")])
    assert found.count == 12


def test_one_folder_for_two_videos_is_refused(tmp_path):
    make(tmp_path / "001", *numbered("frame%06d.jpg", 1, 11))
    with pytest.raises(InputError, match=r"fight/001\.avi and nofight/001\.avi"):
        find_sources(index_frames(tmp_path, "rgb"), [v("fight/001.avi"), v("nofight/001.avi")])


def test_a_folder_that_goes_while_others_are_listed(tmp_path, monkeypatch):
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scandir(f"{path}/gone" if path.endswith("c02") else path))
    for clip in (1, 2):
        make(tmp_path / f"Biking/v_Biking_g01_c{clip:02d}", *numbered("frame%06d.jpg", 1, 11))
    assert index_frames(tmp_path, "rgb").names == ["Biking_g01_c01"]
