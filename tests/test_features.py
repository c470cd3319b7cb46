"""Features of all videos: which frames, which values, from which network; killed and gone on with."""

import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, SMALL
from video_files import make_video

from data.steps import call
from dataloader.lists import load_split
from dataloader.names import UCF101_CLASSES
from dataloader.preparation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preparation,
    default_preparation,
    flip_clips,
    flow_picture,
    to_input,
)
from dataloader.sampling import test_starts as spread
from engine.evaluation import InferenceNet, feature_count
from engine.features import kept_rows
from network import build_model
from saved.checkpoints import write_checkpoint
from saved.feature_file import read_features, with_split, write_features
from utils import InputError

FLAT = (*SMALL, "--size", 32)
FLAGS = {"spatial": ("spatial_cnn.py", "--rgb-dir", "rgb"), "motion": ("motion_cnn.py", "--flow-dir", "flow")}
EACH = {group: [f"{name}_g{group}_c01" for name in sorted(CLASSES, key=["Archery", "Hammering", "HammerThrow"].index)]
        for group in ("01", "02", "08", "22")}  # fmt: skip


@pytest.fixture(scope="module")
def extracted(tiny, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for stream, (script, flag, images) in FLAGS.items():
        run(script, flag, tiny / images, *FLAT, "--features", folder / f"{stream}.npz")
    return folder


@pytest.mark.parametrize("stream", FLAGS)
def test_training_and_test_videos_are_in_the_file(extracted, stream):
    found = read_features(extracted / f"{stream}.npz")
    assert found.values.shape == (12, 3, 768 if stream == "spatial" else 256) and found.values.dtype == np.float16
    parts = {part: {found.videos[row] for row in found.rows(part)} for part in ("train", "test")}
    assert parts["test"] == {*EACH["01"], *EACH["02"]} and parts["train"] == {*EACH["08"], *EACH["22"]}
    for video, label, group in zip(found.videos, found.labels, found.groups, strict=True):
        assert found.about["class_names"][label] == video.split("_")[0] and f"_g{group}_" in video
    assert found.about["stream"] == stream and found.about["samples"] == 3
    assert found.about["preparation"]["margin"] == (5 if stream == "spatial" else 0)
    assert not (extracted / f"{stream}.npz.partial").exists()
    assert {path.name for path in extracted.glob("[!.]*")} == {"spatial.npz", "motion.npz"}


def test_rgb_frames_are_the_middles_of_the_flow_stacks():
    # by Ma et al.'s rule: stacks of 10 of the N - 1 pairs, the frame in the middle of each one's 11 frames
    for frames in (11, 12, 40, 97):
        stacks = spread(frames - 1 - 10 + 1, 7)
        np.testing.assert_array_equal(spread(frames, 7, margin=5), stacks + 5)
    assert spread(3, 2, margin=5).tolist() == [1, 1]  # as near as a short video has it


def test_features_are_those_of_the_network_that_is_named(tiny, run, extracted, tmp_path):
    """--resume's network, whatever its classes, gives other features: those that its tests see."""
    script, flag, images = FLAGS["motion"]
    trained, preparation = tmp_path / "checkpoint.pth.tar", default_preparation("flow", 32, "squash", 10)
    torch.manual_seed(1)
    state = build_model("resnet18", 20, 101).state_dict()
    write_checkpoint({"epoch": 0, "batch": 0, "best_prec1": 0.0, "state_dict": state}, trained, arch="resnet18",
                     class_names=UCF101_CLASSES, dataset="ucf101", split="1", preparation=preparation.as_dict(),
                     args={"test_samples": 3})  # fmt: skip
    common = (script, flag, tiny / images, "--ucf-list", "none", "--workers", 0, "--amp", "off", "--resume", trained)
    run(*common, "--features", tmp_path / "all.npz", "--pooling", "layer4.mean")
    run(*common, "--evaluate", "--output", tmp_path / "test")
    found = read_features(tmp_path / "all.npz")
    tested = pickle.loads((tmp_path / "test/motion_frame_preds.pickle").read_bytes())
    assert found.values.shape == (12, 3, 512)  # what the last layer sees
    rows = [found.videos.index(video) for video in tested]
    assert rows == found.rows("test").tolist()
    logits = found.values[rows] @ state["fc.weight"].numpy().T + state["fc.bias"].numpy()  # (videos, samples, classes)
    np.testing.assert_allclose(logits, np.stack(list(tested.values())), rtol=2e-3, atol=5e-3)  # float16
    assert found.about["network"]["sha256"] != read_features(extracted / "motion.npz").about["network"]["sha256"]
    assert found.about["network"]["checkpoint"] == str(trained.resolve())


def test_killed_and_started_again_it_goes_on_with_the_same_result(tiny, run, strike, extracted, tmp_path):
    script, flag, images = FLAGS["spatial"]
    out, partial = tmp_path / "f.npz", tmp_path / "f.npz.partial"
    command = [script, flag, tiny / images, *FLAT, "--features", out]
    whole = read_features(extracted / "spatial.npz")
    killed = strike("in a row of features", 5, signal.SIGKILL, ROOT / script, *command[1:])
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    with open(partial, "r+b") as file:
        np.load(file), np.load(file)
        # what is done is taken from the file, half a video is not
        np.save(file, np.full(whole.values[0].shape, 7, np.float16))
        file.truncate(partial.stat().st_size - 100)
    assert "12 videos, 1 of them there already" in run(*command).stdout
    found = read_features(out)
    assert found.videos == whole.videos and (found.values[0] == 7).all() and not partial.exists()
    np.testing.assert_array_equal(found.values[1:], whole.values[1:])
    assert "is there already" in run(*command).stdout


def test_other_images_or_settings_are_computed_again_and_no_others(tiny, run, extracted, tmp_path):
    """Images of equal number in place of others; another flag; a list without one of the videos."""
    script, flag, images = FLAGS["spatial"]
    shutil.copytree(tiny / images, tmp_path / "rgb")
    shutil.copy(extracted / "spatial.npz", tmp_path / "f.npz")
    command = (script, flag, tmp_path / "rgb", *FLAT, "--features", tmp_path / "f.npz")
    before = read_features(tmp_path / "f.npz")
    changed, other, gone = sorted((tmp_path / "rgb").glob("v_*"))[:3]
    for image, source in zip(sorted(changed.iterdir()), sorted(other.iterdir()), strict=False):
        image.write_bytes(source.read_bytes())
    shutil.rmtree(gone)
    assert "11 videos, 10 of them there already" in run(*command).stdout
    after = read_features(tmp_path / "f.npz")
    rows = {video: values for video, values in zip(before.videos, before.values, strict=True)}
    del rows[gone.name.removeprefix("v_")]
    assert list(rows) == after.videos
    differ = [video for video, values in zip(after.videos, after.values, strict=True) if (values != rows[video]).any()]
    assert differ == [changed.name.removeprefix("v_")]
    assert "features of 11 videos: " in run(*command, "--test-starts", "tsn").stdout


def test_features_of_video_files_are_those_of_their_extracted_frames(tmp_path, monkeypatch, capsys):
    """Straight from the files, and by extraction and the two streams' scripts: the same rows, but for rounding."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(("clap/1", "wave/3", "wave/4")):
        make_video(tmp_path / f"videos/{name}.avi", place, frames=14 + place, size=(96, 64))
    Path("lists").mkdir()
    Path("lists/train.txt").write_text("clap/1.avi 0\nwave/3.avi 1\n")
    Path("lists/test.txt").write_text("wave/4.avi 1\n")
    network = ["--arch", "resnet18", "--weights", "none"]
    direct = ["recogniser/video_features.py", "videos", "f", *network, "--sizes", "32", "48", "--samples", "3", "4"]
    assert call([*direct, "--views", "2"]) == 0
    rgb, flow = ["data/extract_rgb.py", "videos", "rgb"], ["data/extract_flow.py", "videos", "flow"]
    assert call([*rgb, "--sampling-rate", "1", "--short-side", "160"]) == 0
    assert call([*flow, "--method", "dis"]) == 0
    common = [*network, "--ucf-list", "lists", "--test-views", "2", "--workers", "0"]
    for name, script, *flags in [
        ("rgb", "spatial_cnn.py", "--rgb-dir", "rgb", "--size", "32", "--test-samples", "3"),
        ("greydiff", "motion_cnn.py", "--input", "greydiff", "--rgb-dir", "rgb", "--size", "48", "--test-samples", "4"),
        ("flow", "motion_cnn.py", "--flow-dir", "flow", "--flow-picture", "12", "--size", "48", "--test-samples", "4"),
    ]:
        assert call([script, *flags, *common, "--features", f"{name}.npz"]) == 0
        expected = read_features(f"{name}.npz")
        found = with_split(read_features(f"f/{name}.npz"), load_split("lists", 1))
        for part in ("videos", "labels", "subset", "groups"):
            assert list(getattr(found, part)) == list(getattr(expected, part))
        assert found.about["preparation"] == expected.about["preparation"]
        assert np.ptp(expected.values) > 0.1
        np.testing.assert_allclose(found.values.astype(float), expected.values.astype(float), rtol=0.01, atol=0.004)
    # a split that names a video more, and one of other videos
    Path("lists/test.txt").write_text("wave/4.avi 1\nwave/gone.avi 1\n")
    found = with_split(read_features("f/rgb.npz"), load_split("lists", 1))
    assert len(found.videos) == 3 and "lacks 1 listed video: wave/gone.avi" in capsys.readouterr().err
    without = read_features("f/rgb.npz")
    del without.about["files"]  # as others write it: the report has no pictures then
    assert set(with_split(without, load_split("lists", 1)).about["files"].values()) == {""}
    with pytest.raises(InputError, match="leave --ucf-list out"):
        with_split(found, load_split("lists", 1))
    Path("lists/train.txt").write_text("clap/8.avi 0\nwave/9.avi 1\n")
    Path("lists/test.txt").write_text("clap/6.avi 0\nwave/7.avi 1\n")
    with pytest.raises(InputError, match="no features of the listed videos"):
        with_split(read_features("f/rgb.npz"), load_split("lists", 1))


@pytest.mark.parametrize("damage", [b"PK\x03\x04 no zip", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((  \n"])
def test_what_follows_damage_in_a_partial_file_is_computed_again(tmp_path, damage):
    about = dict.fromkeys(("preparation", "samples", "views", "starts", "pooling", "dtype"), 1)
    about["network"] = {"arch": "resnet18", "sha256": "0"}
    with pytest.raises(KeyError), kept_rows(tmp_path / "f.npz", about) as (rows, add):
        add("a", np.zeros(3))
        raise KeyError
    with open(tmp_path / "f.npz.partial", "ab") as file:
        file.write(damage)
    with kept_rows(tmp_path / "f.npz", about) as (rows, _):
        assert list(rows) == ["a"]


def test_bad_files_are_told(extracted, tmp_path):
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 no zip")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    shutil.copy(extracted / "spatial.npz", tmp_path / "cut.npz")
    with open(tmp_path / "cut.npz", "r+b") as file:
        file.truncate(9000)
    values, about = np.full((2, 1, 4), np.nan, np.float16), read_features(extracted / "spatial.npz").about
    write_features(tmp_path / "nan.npz", ["a/b", "a/c"], [0, 0], ["train", "test"], values, about)
    damaged = dict.fromkeys(("junk", "other", "cut"), "is not a f")
    for name, said in (damaged | {"absent": "--features", "nan": "not finite"}).items():
        with pytest.raises(InputError, match=said):
            read_features(tmp_path / f"{name}.npz")


def test_a_flow_picture_is_x_y_and_speed():
    preparation = Preparation("flow", 4, "squash", IMAGENET_MEAN, IMAGENET_STD, 1, flow_bound=20.0, picture=8.0)
    still = torch.full((1, 2, 4, 4), 128, dtype=torch.uint8)
    right = torch.tensor([round(255 * (8 + 20) / 40), 128], dtype=torch.uint8)[None, :, None, None].expand(1, 2, 4, 4)
    pictures = flow_picture(torch.cat((still, right)), preparation)
    assert preparation.channels == 3 and pictures.shape == (2, 3, 4, 4) and pictures.dtype == torch.uint8
    assert pictures[0, :, 0, 0].tolist() == [128, 128, 0]
    # 8 pixels of flow, but for half a level of what the JPEG holds, whose levels are 2.5 of x's and 5 of speed's
    assert (np.abs(pictures[1, :, 0, 0].int().numpy() - [255, 128, 255]) <= [3, 0, 5]).all()
    # a mirrored video moves left: x is turned round, y and speed are not
    mirrored = flip_clips(pictures, torch.tensor([True, True]), "flow")
    assert mirrored[1, :, 0, 0].tolist() == [255 - int(pictures[1, 0, 0, 0]), *pictures[1, 1:, 0, 0].tolist()]


def test_poolings_are_means_and_maxima_of_stages():
    """Against the stages' own outputs, taken by hooks from the plain network."""
    torch.manual_seed(0)
    model = build_model("resnet18", 3, 2).eval()
    preparation = Preparation("rgb", 64, "squash")
    clips = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    stages = {}
    for name in ("layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: stages.update({name: out}))
    with torch.no_grad():
        model(to_input(clips, preparation))
        pooling = ("layer4.max", "layer3.mean", "layer4.mean")
        found = InferenceNet(model, preparation, torch.float32, pooling=pooling)(clips)[1]
    last, third = stages["layer4"], stages["layer3"]
    expected = torch.cat([last.amax((2, 3)), third.mean((2, 3)), last.mean((2, 3))], 1)
    assert found.shape[1] == feature_count(model, pooling) == 512 + 256 + 512
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    with pytest.raises(InputError, match=r"layer5\.mean"):
        InferenceNet(model, preparation, torch.float32, pooling=["layer5.mean"])
