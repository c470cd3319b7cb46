"""The network against torchvision's own ResNet and the papers' formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

import network
from dataloader.preparation import Preparation
from engine.evaluation import InferenceNet, trained_model
from utils import InputError


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and batch-norm statistics that leave no layer without effect."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.running_mean.shape, generator=generator) * 0.1
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.5
            module.weight.data = torch.rand(module.weight.shape, generator=generator) + 0.5
            module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
    return model.eval()


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory):
    """A file with the names, shapes and the half precision that ImageNet weights of a ResNet-18 come in."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in models.resnet18().state_dict().items()}, path)
    return path


def test_imagenet_weights_reach_the_flow_network_unchanged_but_for_its_ends(imagenet_file):
    source = torch.load(imagenet_file, weights_only=True)
    model = network.build_model("resnet18", 20, 7, str(imagenet_file))
    state = model.state_dict()
    assert state["conv1.weight"].shape == (64, 20, 7, 7) and state["fc.weight"].shape == (7, 512)
    rgb = source["conv1.weight"].float()
    for channel in range(20):  # cross-modality: the mean over RGB, repeated
        torch.testing.assert_close(state["conv1.weight"][:, channel], (rgb[:, 0] + rgb[:, 1] + rgb[:, 2]) / 3)
    for name, tensor in source.items():
        if name not in ("conv1.weight", "fc.weight", "fc.bias"):
            assert torch.equal(state[name], tensor.float() if tensor.is_floating_point() else tensor), name


def test_the_rgb_network_is_torchvisions(imagenet_file):
    reference = models.resnet18()
    reference.load_state_dict({k: v.float() for k, v in torch.load(imagenet_file, weights_only=True).items()})
    model = network.build_model("resnet18", 3, 1000, str(imagenet_file)).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), reference.eval()(x))


def by_hand(clips: torch.Tensor, preparation: Preparation) -> torch.Tensor:
    """The network's input as its definition has it: (pixel / 255 - mean) / std, for differences of each two frames."""
    values = clips.double() / 255
    if preparation.modality == "rgbdiff":
        values = torch.cat([values[:, 3 * t + 3 : 3 * t + 6] - values[:, 3 * t : 3 * t + 3] for t in range(5)], 1)
    if preparation.modality == "greydiff":
        frames = clips.long().unflatten(1, (4, 3))  # ITU-R BT.601's grey, in whole levels
        grey = (299 * frames[:, :, 0] + 587 * frames[:, :, 1] + 114 * frames[:, :, 2] + 500) // 1000
        values = (grey[:, 1:] - grey[:, :-1]).double() / 255
    planes = values.shape[1] // len(preparation.mean)
    mean, std = (torch.tensor(v * planes).view(-1, 1, 1) for v in (preparation.mean, preparation.std))
    return ((values - mean) / std).float()


PREPARATIONS = {
    "rgb": Preparation(),
    "original's flow": Preparation("flow", mean=(0.0,), std=(1.0,), stack_length=10),
    "TSN's flow": Preparation("flow", mean=(0.5,), std=(0.226,), stack_length=10),
    "rgbdiff": Preparation("rgbdiff", mean=(0.1, 0.0, -0.2), std=(0.4, 0.5, 0.6), stack_length=5),
    "greydiff": Preparation("greydiff", mean=(0.1,), std=(0.4,), stack_length=3),
}
IMAGES = {"rgbdiff": 18, "greydiff": 12}  # planes that differences are made of


def random_clips(preparation: Preparation) -> torch.Tensor:
    torch.manual_seed(2)
    images = IMAGES.get(preparation.modality, preparation.channels)
    return torch.randint(0, 256, (2, images, 64, 80), dtype=torch.uint8)


@pytest.mark.parametrize(("arch", "kind"), [("resnet50", "rgb"), ("resnet18", "TSN's flow"), ("resnet18", "greydiff")])
def test_folding_batch_norm_and_normalisation_changes_no_logit(arch, kind):
    preparation = PREPARATIONS[kind]
    model = randomise(network.build_model(arch, preparation.channels, 5, dropout=0.8))
    clips = random_clips(preparation)
    with torch.no_grad():
        expected = model(by_hand(clips, preparation))
        net = InferenceNet(model, preparation)
        logits, features = net(clips)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        torch.testing.assert_close(model.fc(features), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert features.shape == (2, {"resnet18": 512, "resnet50": 2048}[arch])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert isinstance(model.bn1, nn.BatchNorm2d) and model.conv1.padding == (3, 3), "the trained network stays as it is"


@pytest.mark.parametrize("kind", PREPARATIONS)
def test_grey_levels_reach_bfloat16_unrounded(kind):
    """Two grey levels apart by one must differ in what enters the first convolution, everywhere by the same step."""
    preparation = PREPARATIONS[kind]
    net = InferenceNet(network.build_model("resnet18", preparation.channels, 5), preparation, torch.bfloat16)
    entering = []
    first = next(module for module in net.trunk.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: entering.append(inputs[0].float()))
    clips = torch.zeros(1, IMAGES.get(kind, preparation.channels), 16, 16, dtype=torch.uint8)
    clips[0, -3 if kind == "greydiff" else -1 :] = torch.arange(256).view(16, 16)
    net(clips)
    levels = entering[0][0, -1, 3:-3, 3:-3].flatten()
    assert len(levels) == 256 and len(set(levels.diff().tolist())) == 1


def test_dropout_sits_between_pooling_and_the_last_layer():
    model = network.build_model("resnet18", 3, 5, dropout=0.8).train()
    seen = []
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(torch.randn(8, 3, 64, 64))
    dropped = (seen[0] == 0).float().mean().item()
    assert 0.75 < dropped < 0.85
    assert model.state_dict().keys() == models.resnet18(num_classes=5).state_dict().keys()
    assert not any(isinstance(module, nn.Dropout) for module in network.build_model("resnet18", 3, 5).modules())


def test_the_last_layer_starts_as_tsns(imagenet_file):
    """Normal, of standard deviation .001, without bias; weights that bring a last layer of as many classes keep it."""
    torch.manual_seed(0)
    fc = network.build_model("resnet18", 3, 101, str(imagenet_file), fc_std=0.001).fc
    assert abs(fc.weight.std().item() / 0.001 - 1) < 0.02 and not fc.bias.any()
    assert fc.weight.abs().max() > 0.0035  # a normal's, no uniform's
    brought = torch.load(imagenet_file, weights_only=True)
    model = network.build_model("resnet18", 3, len(brought["fc.bias"]), str(imagenet_file), fc_std=0.001)
    torch.testing.assert_close(model.fc.weight, brought["fc.weight"].float())


def test_frozen_batch_norms_are_left_alone_by_a_step():
    """Decay and momentum, too, which act without a gradient where an optimizer is given one of zeros."""
    torch.manual_seed(0)
    model = network.build_model("resnet18", 3, 5).train()
    network.freeze_batchnorm(model)
    groups = network.parameter_groups(model, 0.1, 5e-4)
    assert {group["lr"] for group in groups} == {group["initial_lr"] for group in groups} == {0.1}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 3, 64, 64)).logsumexp(1).sum().backward()
        optimizer.step()
    kept = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)} - {"bn1"}
    assert kept == {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}


def test_decay_spares_biases_and_batch_norm():
    model = network.build_model("resnet18", 20, 5)
    groups = network.parameter_groups(model, 0.1, 5e-4, conv1_lr_factor=10)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or ".bn" in f".{name}" or "downsample.1" in name
        assert decay[id(parameter)] == (0 if spared else 5e-4), name
        assert rate[id(parameter)] == (1.0 if name == "conv1.weight" else 0.1), name


def test_weights_that_cannot_be_downloaded_name_the_ways_out(monkeypatch):
    asked = []

    def offline(url, check_hash, **kwargs):
        asked.append((url, check_hash))
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"--weights PATH.*--weights none"):
        network.build_model("resnet18", 3, 5, "imagenet")
    assert asked == [(models.ResNet18_Weights.IMAGENET1K_V1.url, True)]
    with pytest.raises(InputError, match="IMAGENET1K_V2 for resnet18, only IMAGENET1K_V1"):
        network.build_model("resnet18", 3, 5, "IMAGENET1K_V2")


def test_a_mismatch_is_told_in_one_line():
    model = network.build_model("resnet18", 3, 101)
    assert network.explain_mismatch(model, models.resnet18(num_classes=101).state_dict()) is None
    told = network.explain_mismatch(model, models.resnet18(num_classes=51).state_dict())
    assert told == "it has 51 classes, not 101"
    told = network.explain_mismatch(model, models.resnet50(num_classes=51).state_dict())
    assert "51 classes, not 101" in told and "\n" not in told and len(told) < 500
    told = network.explain_mismatch(model, {"features.0.weight": torch.zeros(1)})
    assert told == "none of its tensors is this network's: it holds another network, or a head on features alone"
    extra = {**models.resnet18(num_classes=101).state_dict(), "head.fc.bias": torch.zeros(1)}
    assert network.explain_mismatch(model, extra) == "1 tensor missing or too many, such as head.fc.bias"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"conv1.weight": torch.ones(64, 20, 7, 7)}, r"conv1.weight is \(64, 20, 7, 7\), not \(64, 10, 7, 7\)"),
        ({"conv1.weight": torch.ones(64)}, r"conv1.weight is \(64,\), not"),
        ({"fc.weight": None, "fc.bias": None}, "2 tensors missing"),
    ],
)
def test_only_rgb_weights_reach_another_input(imagenet_file, tmp_path, change, told):
    state = {**torch.load(imagenet_file, weights_only=True), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=told):
        network.build_model("resnet18", 10, 1000, str(tmp_path / "w.pth"))


def test_a_checkpoint_is_its_network_and_a_misfit_is_told_in_one_line():
    state = models.resnet18(num_classes=5).state_dict()
    about = {"path": "run.pth.tar", "in_channels": 3, "num_classes": 5, "state_dict": state,
             "preparation": Preparation().as_dict()}  # fmt: skip
    model = trained_model(SimpleNamespace(arch="resnet18", **about))
    assert not model.training and all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    with pytest.raises(InputError, match=r"run.pth.tar does not fit resnet34: \d+ tensors missing") as told:
        trained_model(SimpleNamespace(arch="resnet34", **about))
    assert "\n" not in str(told.value)
