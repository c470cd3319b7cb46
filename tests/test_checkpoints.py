"""Checkpoints of other projects: their networks, restated here by their layers' names, give our logits."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import python2_files
import torch
from torch import nn
from torchvision.models import resnet18

from dataloader.preparation import Preparation
from network import architectures, build_model, explain_mismatch
from saved.checkpoint_reader import read_checkpoint, read_state_dict
from saved.foreign import FLOW_ORDERS, guess_arch
from utils import InputError

CLASSES = 7


class Block(nn.Module):
    """ResNet-18's block (He et al. 2016, figure 2): all four projects name its layers alike."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class Net(nn.Module):
    """ResNet-18 whose first and last layer carry a project's names; without `last` it gives features."""

    def __init__(self, channels: int, first: str = "conv1", last: str | None = "fc") -> None:
        super().__init__()
        self.first, self.last = first, last
        self.add_module(first, nn.Conv2d(channels, 64, 7, 2, 3, bias=False))
        self.bn1 = nn.BatchNorm2d(64)
        for layer, (inputs, width, stride) in enumerate([(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)], 1):
            self.add_module(f"layer{layer}", nn.Sequential(Block(inputs, width, stride), Block(width, width, 1)))
        if last:
            self.add_module(last, nn.Linear(512, CLASSES))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.get_submodule(self.first)(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return self.get_submodule(self.last)(x) if self.last else x


class TSN(nn.Module):
    """tsn-pytorch's wrapper: the ResNet is base_model, its last layer a dropout, the classifier new_fc."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.base_model = Net(channels, last=None)
        self.new_fc = nn.Linear(512, CLASSES)

    def forward(self, x):
        return self.new_fc(self.base_model(x))


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` in eval mode with statistics and weights that make every tensor matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1, generator=generator)
            elif name.endswith("running_var") or value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return net.eval()


def ours(checkpoint, channels: int) -> nn.Module:
    """Our network with the checkpoint's weights; every one of them has to fit."""
    model = build_model(checkpoint.arch, channels, checkpoint.num_classes)
    assert explain_mismatch(model, checkpoint.state_dict) is None
    model.load_state_dict(checkpoint.state_dict, strict=True)
    return model.eval()


def image(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def assert_same_logits(theirs: nn.Module, checkpoint, their_input: torch.Tensor, our_input: torch.Tensor) -> None:
    with torch.inference_mode():  # float64: a sum over channels in another order is not what is tested
        expected = copy.deepcopy(theirs).double()(their_input.double())
        found = ours(checkpoint, our_input.shape[1]).double()(our_input.double())
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def old_style(net: nn.Module) -> OrderedDict:
    """The state_dict as PyTorch 0.2 to 0.3 had it: no num_batches_tracked."""
    state = net.state_dict()
    return OrderedDict((name, value) for name, value in state.items() if "num_batches_tracked" not in name)


def save_original(path, net: nn.Module, epoch: int = 41, best: float = 80.5) -> None:
    """The original's .pth.tar: PyTorch 0.2 under Python 2, with SGD's state keyed by 64-bit ids."""
    state = old_style(net)
    arrays = OrderedDict((name, python2_files.Tensor(value.numpy())) for name, value in state.items())
    ids = [139_872_000_000_000 + 72 * i for i in range(3)]
    momenta = [python2_files.Tensor(np.full((2, 3), float(i), "f4")) for i in range(3)]
    optimizer = {
        "state": {key: {"momentum_buffer": momentum} for key, momentum in zip(ids, momenta, strict=True)},
        "param_groups": [
            {"lr": 1e-3, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": ids}
        ],
    }
    content = {"epoch": epoch, "state_dict": arrays, "best_prec1": best, "optimizer": optimizer}
    path.write_bytes(python2_files.checkpoint(content))


def test_original_spatial(tmp_path):
    theirs = randomised(Net(3, "conv1_custom", "fc_custom"))
    save_original(tmp_path / "model_best.pth.tar", theirs)
    checkpoint = read_checkpoint(tmp_path / "model_best.pth.tar", "rgb")
    assert_same_logits(theirs, checkpoint, image(3), image(3))
    assert (checkpoint.source, checkpoint.arch, checkpoint.num_classes) == ("original", "resnet18", CLASSES)
    assert (checkpoint.epoch, checkpoint.best_prec1) == (41, 80.5)  # it saved the epoch it had finished
    preparation = Preparation.from_dict(checkpoint.preparation)
    assert (preparation.modality, preparation.test_resize) == ("rgb", "squash")
    assert preparation.mean == (0.485, 0.456, 0.406) and preparation.std == (0.229, 0.224, 0.225)
    protocol = {"test_samples": 19, "test_views": 1, "test_starts": "original"}
    assert checkpoint.args == protocol | {"lr": 1e-3, "weight_decay": 0.0}
    ids = checkpoint.raw["optimizer"]["param_groups"][0]["params"]
    assert ids[1] == 139_872_000_000_072
    assert checkpoint.raw["optimizer"]["state"][ids[2]]["momentum_buffer"].eq(2).all()


@pytest.mark.parametrize("order", ["original", "older", "oldest"])
def test_original_motion(tmp_path, order):
    """Each revision's loader, its index arithmetic with Python's negative indices included, fills their stack."""
    theirs = randomised(Net(20, "conv1_custom", "fc_custom"))
    save_original(tmp_path / "checkpoint.pth.tar", theirs)
    flow = image(20)  # x and y of frame j in channels 2j, 2j + 1: our order
    stack = torch.empty_like(flow)
    for j in range(10):
        place = {"original": j - 1, "older": j - 5, "oldest": j}[order]
        stack[:, 2 * place] = flow[:, 2 * j]
        stack[:, 2 * place + 1] = flow[:, 2 * j + 1]
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth.tar", "flow", flow_order=order)
    assert_same_logits(theirs, checkpoint, stack, flow)
    preparation = Preparation.from_dict(checkpoint.preparation)
    assert (preparation.mean, preparation.std) == ((0.0,), (1.0,))  # x / 255 and nothing else
    assert (preparation.test_resize, preparation.stack_length) == ("squash", 10)
    assert order in FLOW_ORDERS


@pytest.mark.parametrize(("channels", "prefix"), [(3, ""), (20, "module.")])
def test_two_stream_pytorch(tmp_path, channels, prefix):
    theirs = randomised(Net(channels, last="fc_action"))
    state = {prefix + name: value for name, value in old_style(theirs).items()}
    content = {"epoch": 250, "arch": "rgb_resnet18", "state_dict": state, "best_prec1": torch.tensor(85.6)}
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(tmp_path / "x", "rgb" if channels == 3 else "flow")
    assert_same_logits(theirs, checkpoint, image(channels), image(channels))
    assert checkpoint.source == "two-stream-pytorch"
    assert checkpoint.epoch == 249  # it saved the number of the next epoch
    assert checkpoint.best_prec1 == pytest.approx(85.6)
    assert (checkpoint.args["test_samples"], checkpoint.args["test_views"]) == (25, 10)
    assert checkpoint.args["test_starts"] == ("tsn" if checkpoint.source == "tsn-pytorch" else "spread")
    preparation = Preparation.from_dict(checkpoint.preparation)
    assert preparation.test_resize == "center"
    if channels == 20:
        assert (preparation.mean, preparation.std, preparation.stack_length) == ((0.5,), (0.226,), 10)
    else:
        assert preparation.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(("channels", "modality"), [(3, "rgb"), (10, "flow"), (15, "rgbdiff")])
def test_tsn_pytorch(tmp_path, channels, modality):
    theirs = randomised(TSN(channels))
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 80, "arch": "resnet18", "state_dict": state, "best_prec1": 84.2}, tmp_path / "x.pth.tar")
    checkpoint = read_checkpoint(tmp_path / "x.pth.tar", modality)
    assert_same_logits(theirs, checkpoint, image(channels), image(channels))
    assert (checkpoint.source, checkpoint.epoch, checkpoint.in_channels) == ("tsn-pytorch", 79, channels)
    preparation = Preparation.from_dict(checkpoint.preparation)
    assert (preparation.modality, preparation.channels, preparation.test_resize) == (modality, channels, "center")
    assert preparation.stack_length == {"rgb": 1, "flow": 5, "rgbdiff": 5}[modality]
    if modality == "flow":
        assert preparation.mean == (0.5,) and preparation.std == (pytest.approx((0.229 + 0.224 + 0.225) / 3),)


def test_torchvision(tmp_path, dtype=torch.float16):
    theirs = randomised(resnet18(num_classes=CLASSES)).to(dtype).float()
    state = {name: value.to(dtype) if value.ndim > 1 else value for name, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    checkpoint = read_checkpoint(tmp_path / "weights.pth", "rgb")
    assert_same_logits(theirs, checkpoint, image(3), image(3))
    assert (checkpoint.source, checkpoint.epoch, checkpoint.best_prec1) == ("torchvision", -1, 0)
    assert checkpoint.preparation["test_resize"] == "center"
    weights = read_state_dict(tmp_path / "weights.pth")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_our_own(tmp_path):
    net = randomised(resnet18(num_classes=2))
    preparation = Preparation("rgb", 112, "center").as_dict()
    content = {
        "format": "two-stream", "arch": "resnet18", "state_dict": net.state_dict(), "epoch": 4, "best_prec1": 50.0,
        "args": {"lr": 0.1}, "class_names": ["Fight", "Calm"], "preparation": preparation,
    }  # fmt: skip
    torch.save(content, tmp_path / "mine")
    checkpoint = read_checkpoint(tmp_path / "mine", "rgb")
    assert (checkpoint.source, checkpoint.epoch, checkpoint.best_prec1) == ("two-stream", 4, 50.0)
    assert (checkpoint.class_names, checkpoint.args) == (["Fight", "Calm"], {"lr": 0.1})
    assert Preparation.from_dict(checkpoint.preparation) == Preparation("rgb", 112, "center")
    torch.testing.assert_close(checkpoint.state_dict, dict(net.state_dict()), rtol=0, atol=0)
    del content["preparation"]
    torch.save(content, tmp_path / "mine")
    with pytest.raises(InputError, match="preparation: Field required"):
        read_checkpoint(tmp_path / "mine", "rgb")


def test_architectures_are_told_by_their_weights():
    with torch.device("meta"):
        for arch in architectures():
            assert guess_arch(build_model(arch, 20, 5).state_dict()) == arch


def test_what_does_not_fit_is_said_in_one_line(tmp_path):
    save_original(tmp_path / "motion", Net(20, "conv1_custom", "fc_custom"))
    torch.save(Net(3).state_dict(), tmp_path / "rgb")
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)).state_dict(), tmp_path / "other")
    torch.save({"epoch": 3, "note": "no weights\x1b[31m"}, tmp_path / "none")
    torch.save(Net(7).state_dict(), tmp_path / "odd")
    cases = [
        ("motion", "rgb", "20 input channels.*motion_cnn.py --input flow"),
        ("rgb", "flow", "3 input channels.*spatial_cnn.py.*--weights"),
        ("other", "rgb", "no ResNet.*0.weight"),
        ("none", "rgb", "no weights.*epoch, note"),
        ("odd", "flow", "7 input channels"),
        ("absent", "rgb", "No such file"),
    ]
    for name, modality, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            read_checkpoint(tmp_path / name, modality)
        message = str(caught.value)
        assert name in message and "\n" not in message and "\x1b" not in message and len(message) < 400

    state = read_state_dict(tmp_path / "rgb")
    assert explain_mismatch(build_model("resnet18", 3, CLASSES), state) is None
    assert "7 classes, not 101" in explain_mismatch(build_model("resnet18", 3, 101), state)
    assert "is (64, 3, 7, 7), not (64, 20, 7, 7)" in explain_mismatch(build_model("resnet18", 20, 7), state)
    deeper = explain_mismatch(build_model("resnet34", 3, CLASSES), state)
    assert "tensors missing or too many, such as layer" in deeper and len(deeper) < 300


def test_hmdb51s_classes_in_tsns_order(tmp_path, capsys):
    """TSN's class_list has kick_ball, kick and sword_exercise, sword; the official lists' names are sorted."""
    official = sorted([*(f"class_{i:02d}" for i in range(47)), "kick", "kick_ball", "sword", "sword_exercise"])
    tsns = [f"class_{i:02d}" for i in range(47)] + ["kick_ball", "kick", "sword_exercise", "sword"]
    net = TSN(3)
    net.new_fc = nn.Linear(512, 51)
    torch.save({"state_dict": net.state_dict(), "epoch": 1}, tmp_path / "hmdb51")
    checkpoint = read_checkpoint(tmp_path / "hmdb51")
    ours = checkpoint.in_order_of(official).state_dict
    assert "in TSN's order" in capsys.readouterr().out
    for row, name in enumerate(official):
        for part in ("weight", "bias"):
            torch.testing.assert_close(ours[f"fc.{part}"][row], net.state_dict()[f"new_fc.{part}"][tsns.index(name)])
    assert checkpoint.in_order_of(tsns) is checkpoint  # TSN's own lists


def test_a_checkpoint_with_a_moving_average_is_tested_as_it_was(tmp_path):
    """Trainings of earlier versions with --ema stored torch's AveragedModel beside the weights."""
    model = build_model("resnet18", 3, CLASSES)
    average = torch.optim.swa_utils.AveragedModel(model)
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "ema": average.state_dict()}, tmp_path / "ema")
    torch.testing.assert_close(read_state_dict(tmp_path / "ema"), dict(model.state_dict()))
