"""timm's networks in both streams: they train, go on, test, give features and heads, answer and are exported."""

import re

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY
from video_files import make_video

timm = pytest.importorskip("timm")

from dataloader.preparation import Preparation, default_preparation
from engine.evaluation import InferenceNet
from network import build_model, parameter_groups, rgb_normalisation
from saved.checkpoint_reader import read_checkpoint
from saved.feature_file import read_features
from utils import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def path(run, tiny, tmp_path_factory):
    """A checkpoint of a spatial stream without batch norm; other tests train one that has it (conftest.TINY)."""
    output = tmp_path_factory.mktemp("timm")
    flags = (*TINY, "--arch", "timm:test_vit", "--epochs", 1)
    run("spatial_cnn.py", *flags, "--rgb-dir", tiny / "rgb", "--output", output)
    return output / "checkpoint.pth.tar"


# --- as a user runs them -------------------------------------------------------------------------------


def test_features_heads_and_answers(run, tiny, path, tmp_path):
    run("spatial_cnn.py", "--ucf-list", "none", "--rgb-dir", tiny / "rgb", "--workers", 0, "--resume", path,
        "--features", tmp_path / "f.npz")  # fmt: skip
    features = read_features(tmp_path / "f.npz")
    assert features.about["pooling"] == ["pre-logits"]
    assert features.values.shape == (12, 3, 64)  # the width of test_vit
    video = make_video(tmp_path / "v.avi", 1)
    run("heads.py", "--spatial", tmp_path / "f.npz", "--folds", 2, "--output", tmp_path / "mean")
    head = tmp_path / "mean/linear/spatial/checkpoint.pth.tar"
    assert CLASSES[0] in run("predict.py", video, "--spatial", head, "--json").stdout


@pytest.mark.slow
def test_exports_compute_what_timm_computes(run, path, tmp_path):
    target = tmp_path / "m.pt2"
    clips = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert "checked" in run("recogniser/export.py", path, target).stdout
    state = read_checkpoint(path).state_dict
    theirs = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    theirs.load_state_dict({name.removeprefix("trunk."): v for name, v in state.items() if name.startswith("trunk.")})
    with torch.inference_mode():
        expected = theirs(clips) @ state["fc.weight"].T + state["fc.bias"]
        found = torch.export.load(target).module()(clips)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    for made, said in (
        (lambda: build_model("timm:resnet10t.a1_in1k", 3, 5), "timm has no such network"),  # no such tag
        (lambda: build_model("timm:resnet10t", 3, 5, "IMAGENET1K_V2"), "no such file"),
        (lambda: build_model("timm:test_vit", 3, 5, size=70), "at --size 70: timm refuses that (Input height (70)"),
    ):
        with pytest.raises(InputError, match=re.escape(said)) as error:
            made()
        assert "\n" not in str(error.value) and len(str(error.value)) < 700


# --- where a training starts ---------------------------------------------------------------------------


@pytest.fixture
def theirs():
    torch.manual_seed(1)
    return timm.create_model("resnet10t", num_classes=7)


def test_a_file_of_timms_starts_both_streams(theirs, tmp_path):
    state, path = theirs.state_dict(), tmp_path / "w.safetensors"
    pytest.importorskip("safetensors.torch").save_file(state, path)
    rgb, flow = (build_model("timm:resnet10t", channels, 7, str(path), size=64).state_dict() for channels in (3, 20))
    for name, value in state.items():
        if not name.startswith("fc."):
            assert torch.equal(rgb[f"trunk.{name}"], value), name
    # TSN's mean over RGB, in each channel alike; timm's own way is R, G, B in turn, times 3 / 20
    assert torch.equal(flow["trunk.conv1.0.weight"], state["conv1.0.weight"].mean(1, keepdim=True).repeat(1, 20, 1, 1))
    same = rgb.keys() - {"trunk.conv1.0.weight", "fc.weight", "fc.bias"}
    assert len(same) > 60 and all(torch.equal(rgb[name], flow[name]) for name in same)


def test_each_of_several_first_convolutions_takes_the_mean_over_rgb(tmp_path):
    state = timm.create_model("repvgg_a0").state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = build_model("timm:repvgg_a0", 10, 3, str(tmp_path / "w.pth"), size=32)
    first = ("stem.conv_kxk.conv.weight", "stem.conv_1x1.conv.weight")
    for name in first:
        assert torch.equal(model.trunk.state_dict()[name], state[name].mean(1, keepdim=True).repeat(1, 10, 1, 1))
    rates = {id(p): group["lr"] for group in parameter_groups(model, 0.1, 0, 5) for p in group["params"]}
    fast = {name for name, parameter in model.named_parameters() if rates[id(parameter)] == 0.5}
    assert fast == {f"trunk.{name}" for name in first}


def test_weights_from_the_hub(theirs, monkeypatch):
    asked = []

    def give(repository, *rest, **options):
        asked.append(repository)
        return timm.create_model("resnet10t").state_dict() | {"layer1.0.conv1.weight": theirs.layer1[0].conv1.weight}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", give)
    model = build_model("timm:resnet10t", 20, 5, "imagenet", fc_std=0.001, size=64)
    assert asked == ["timm/resnet10t.c3_in1k"]
    assert torch.equal(model.trunk.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    assert model.fc.weight.abs().max() < 0.01 and not model.fc.bias.any()  # as the tsn recipe starts it


def test_the_mean_and_std_are_those_of_the_weights(path):
    half = (0.5, 0.5, 0.5)
    found = Preparation.from_dict(read_checkpoint(path).preparation)
    assert (found.mean, found.std) == (half, half)  # test_vit's
    clip = rgb_normalisation("timm:vit_base_patch16_clip_224.openai")  # as OpenAI published it with CLIP
    np.testing.assert_allclose(clip["mean"], (0.4815, 0.4578, 0.4082), atol=1e-4)


# --- the network itself --------------------------------------------------------------------------------


def test_the_network_for_tests_computes_what_timm_computes():
    torch.manual_seed(0)
    model = build_model("timm:resnet10t", 3, 5, size=64, dropout=0.5).eval()
    preparation = default_preparation("rgb", 64, "squash")
    clips = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preparation.mean, preparation.std))
    x = (clips.float() / 255 - mean) / std
    logits, features = InferenceNet(model, preparation)(clips)
    half = InferenceNet(model, preparation, torch.bfloat16)(clips)[0]
    with torch.no_grad():
        pooled = model.trunk.forward_head(model.trunk.forward_features(x), pre_logits=True)
        torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, pooled @ model.fc.weight.T + model.fc.bias, rtol=1e-4, atol=1e-5)
    assert half.dtype == torch.float32 and ((half - logits).norm() / logits.norm()).item() < 3e-2


def test_a_missing_package_is_a_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        build_model("timm:resnet10t", 3, 5)
