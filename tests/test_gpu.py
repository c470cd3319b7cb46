"""On a CUDA GPU: both streams train, stop, go on, test, and give features; what the network says is what it says on a
CPU. `pytest -m gpu`."""

import pickle
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from test_heads import rising_or_falling
from test_resume import assert_same_runs

from dataloader.preparation import default_preparation
from engine.heads import TEMPORAL, predict_temporal, train_temporal
from network import InferenceNet, build_model

pytestmark = pytest.mark.gpu
FEW = (*SMALL, "--device", "cuda", "--batch-size", 2, "--epochs", 2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("modality", "length"), [("rgb", 1), ("flow", 10), ("greydiff", 3)])
def test_the_network_says_what_it_says_on_a_cpu(modality, length, compiled):
    """float32 by cuDNN is TF32 in convolutions: products of 10 bits."""
    torch.manual_seed(0)
    preparation = default_preparation(modality, 96, "squash", length)
    model = build_model("resnet50", preparation.channels, 11).eval()
    planes = preparation.clip_length * (1 if modality == "flow" else 3) * (2 if modality == "flow" else 1)
    clips = torch.randint(0, 256, (5, planes, 96, 96), dtype=torch.uint8)
    expected = InferenceNet(model, preparation)(clips)[0]
    for dtype, bound in ((torch.float32, 1e-2), (torch.bfloat16, 3e-2)):
        net = InferenceNet(model.cuda(), preparation, dtype, compiled).cuda()
        found = net(clips.cuda())[0].cpu()
        model.cpu()
        assert (found - expected).abs().max() < bound * expected.abs().max(), dtype


@pytest.mark.parametrize(
    "flags",
    [("--dropout", 0.5, "--ema", 0.9, "--crop", "multiscale", "--colour-jitter", 0.2), ("--compile",),
     ("--recipe", "small", "--frozen-versions", 2), ("--amp", "fp16", "--accumulate", 2, "--clip-grad", 5)],
    ids=["everything random", "compiled", "small", "half"],
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


def test_motion_stream_its_test_features_and_prediction(tiny, run, tmp_path):
    flow = ("motion_cnn.py", "--flow-dir", tiny / "flow")
    run(*flow, *FEW, "--output", tmp_path / "motion")
    trained = ("--resume", tmp_path / "motion/checkpoint.pth.tar", "--ucf-list", "none", "--workers", 1, "--evaluate")
    scores = {}
    for device in ("cpu", "cuda"):
        run(*flow, *trained, "--device", device, "--amp", "off", "--output", tmp_path / device,
            "--features", tmp_path / f"{device}.npz")  # fmt: skip
        scores[device] = pickle.loads((tmp_path / device / "video_preds.pickle").read_bytes())
    assert scores["cpu"].keys() == scores["cuda"].keys() and scores["cpu"]
    for name, logits in scores["cpu"].items():
        np.testing.assert_allclose(scores["cuda"][name], logits, rtol=1e-2, atol=1e-2 * np.abs(logits).max())


@pytest.mark.parametrize("kind", TEMPORAL)
def test_heads_over_time(kind):
    values, labels = rising_or_falling(120, 9, 0)
    rows, device = np.arange(80), torch.device("cuda")
    heads = [train_temporal(TEMPORAL[kind], [values], labels, 2, rows, 20, 0, device)[0] for _ in range(2)]
    said = [predict_temporal(head, [values], np.arange(80, 120), device) for head in heads]
    assert (said[0].argmax(1) == labels[80:]).mean() > 0.8
    np.testing.assert_allclose(said[0], said[1], rtol=1e-2, atol=1e-2 * np.abs(said[0]).max())
