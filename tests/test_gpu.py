"""On a CUDA GPU: both streams train, stop, go on, test, and give features; what the network says is what it says on a
CPU. `pytest -m gpu`."""

import pickle
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from test_heads import quick, rising_or_falling
from test_network import PREPARATIONS, random_clips, randomise
from test_resume import assert_same_runs

from engine.evaluation import InferenceNet
from engine.temporal_heads import TEMPORAL, train_temporal
from network import build_model
from saved.feature_file import read_features

pytestmark = pytest.mark.gpu
FEW = (*SMALL, "--device", "cuda", "--batch-size", 2, "--epochs", 2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", PREPARATIONS)
def test_the_network_says_what_it_says_on_a_cpu(kind, compiled, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its products of 10 bits are not ours to judge
    preparation = PREPARATIONS[kind]
    model, clips = randomise(build_model("resnet50", preparation.channels, 11)), random_clips(preparation)
    expected = InferenceNet(model, preparation)(clips)[0]
    model.cuda()
    for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        found = InferenceNet(model, preparation, dtype, compiled).cuda()(clips.cuda())[0].cpu()
        assert (found - expected).abs().max() < bound * expected.abs().max(), dtype


@pytest.mark.parametrize(
    "flags",
    [("--dropout", 0.5, "--crop", "multiscale"), ("--compile",),
     ("--amp", "fp16", "--accumulate", 2, "--clip-grad", 5)],
    ids=["everything random", "compiled", "half"],
)  # fmt: skip
def test_stopped_and_resumed_to_the_same_bits(flags, tiny, run, strike, tmp_path):
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *FEW, "--deterministic", *flags)
    run(*arguments, "--output", tmp_path / "whole")
    process = strike(
        "in a batch", 4, signal.SIGKILL, ROOT / arguments[0], *arguments[1:], "--output", tmp_path / "parts",
        "--save-every-minutes", 0.0001,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr
    run(*arguments, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_motion_streams_test_and_features_are_a_cpus(tiny, run, tmp_path):
    flow = ("motion_cnn.py", "--flow-dir", tiny / "flow")
    run(*flow, *FEW, "--output", tmp_path / "motion")
    trained = ("--resume", tmp_path / "motion/checkpoint.pth.tar", "--ucf-list", "none", "--workers", 1, "--evaluate")
    scores, features = {}, {}
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.npz"
        run(*flow, *trained, "--device", device, "--amp", "off", "--output", tmp_path / device,
            NVIDIA_TF32_OVERRIDE="0")  # fmt: skip
        run(*flow, *trained[:-1], "--device", device, "--amp", "off", "--features", file, NVIDIA_TF32_OVERRIDE="0")
        scores[device] = pickle.loads((tmp_path / device / "motion_video_preds.pickle").read_bytes())
        features[device] = read_features(file)
    assert scores["cpu"].keys() == scores["cuda"].keys() and scores["cpu"]
    for name, logits in scores["cpu"].items():
        np.testing.assert_allclose(scores["cuda"][name], logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())
    assert features["cpu"].videos == features["cuda"].videos
    np.testing.assert_allclose(features["cuda"].values, features["cpu"].values, rtol=2e-3, atol=2e-3)  # float16


@pytest.mark.parametrize("kind", TEMPORAL)
def test_heads_over_time(kind):
    values, labels = rising_or_falling(240, 9, 0)
    train, test = np.arange(160), np.arange(160, 240)
    _, logits = train_temporal(quick(kind), [values], labels, 2, train, 12, 0, torch.device("cuda"), test)
    assert (logits[-1].argmax(1) == labels[test]).mean() > 0.95
