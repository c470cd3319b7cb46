"""The network of both streams: a torchvision ResNet or any timm network, with any channels and classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn
from torchvision import models

from common.timm_network import TIMM, TimmNet, normalisation, timm_state
from dataloader.preparation import IMAGENET_MEAN, IMAGENET_STD
from saved.checkpoint_reader import read_state_dict
from utils import InputError, plural


class ResNet(nn.Module):
    """A torchvision ResNet with torchvision's weight names: (N, in_channels, H, W) -> (N, num_classes)."""

    first_weights = ("conv1.weight",)  # the state_dict's weights that see the input
    stages = ("layer1", "layer2", "layer3", "layer4")
    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    avgpool: nn.Module
    fc: nn.Linear

    def __init__(self, arch: str, in_channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        for name, child in models.get_model(arch, num_classes=num_classes).named_children():
            self.add_module(name, child)
        self.conv1 = nn.Conv2d(in_channels, self.conv1.out_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        # Dropout goes into avgpool, which has no weights, so that no state_dict key changes.
        if dropout > 0:
            self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(dropout))

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 64, H / 4, W / 4)
        for stage in self.stages:
            x = getattr(self, stage)(x)  # every stage but the first halves the sides
        return self.fc(self.avgpool(x).flatten(1))

    def below_fc(self) -> nn.Sequential:
        """Return the network without dropout and its last layer: (N, in_channels, H, W) -> features (N, F)."""
        layers = [getattr(self, name) for name in ("conv1", "bn1", "relu", "maxpool", *self.stages)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


Network: TypeAlias = ResNet | TimmNet


def architectures() -> list[str]:
    """List torchvision's classification ResNets, ResNeXts and Wide ResNets."""
    names = models.list_models(module=models, include=["resnet*", "resnext*", "wide_resnet*"])
    return sorted(names, key=lambda name: (len(name), name))


def build_model(
    arch: str, in_channels: int, num_classes: int, weights: str = "none",
    dropout: float = 0.0, fc_std: float = 0.0, flow_order: str = "original", size: int = 224,
) -> Network:  # fmt: skip
    """Build a network: (N, in_channels, size, size) float -> logits (N, num_classes). ResNets take any size.

    `arch` is one of `architectures()`, or "timm:NAME".

    `weights` is "none" (random), "imagenet" (torchvision's or timm's, downloaded once), a torchvision weight
    set such as "IMAGENET1K_V2", or the path of any checkpoint. The original's motion checkpoints have channels
    in `flow_order` (foreign.FLOW_ORDERS). RGB weights are adapted to any other channel count by cross-modality
    initialisation. A last layer for other classes starts at random: normal with standard deviation `fc_std`
    and no bias (TSN's code: .001), or torch's default for 0. `dropout` acts on the pooled features (TSN,
    section 3.2: 0.8 spatial, 0.7 motion).
    """
    model: Network
    if arch.startswith(TIMM):
        model = TimmNet(arch.removeprefix(TIMM), in_channels, num_classes, size, dropout)
    elif arch in (known := architectures()):
        model = ResNet(arch, in_channels, num_classes, dropout)
    else:
        names = f"{', '.join(known)}, or {TIMM}NAME"
        raise InputError(f"--arch {arch} is not a ResNet of torchvision; choose from {names}")
    if fc_std:
        nn.init.normal_(model.fc.weight, std=fc_std)
        nn.init.zeros_(model.fc.bias)
    if weights != "none":
        start = fit_imagenet(pretrained_state(arch, weights, flow_order, size), model)
        if problem := explain_mismatch(model, start):
            raise InputError(f"--weights {weights} does not fit {arch}: {problem}; name its network with --arch")
        model.load_state_dict(start)
    return model


def rgb_normalisation(arch: str) -> dict[str, Any]:
    """Return mean and std for an RGB Preparation: ImageNet's, or those of timm's weights if they differ."""
    if arch.startswith(TIMM):
        return normalisation(arch.removeprefix(TIMM))
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def pretrained_state(arch: str, weights: str, flow_order: str = "original", size: int = 224) -> dict[str, Tensor]:
    """Return the float32 state_dict that `--weights` names; a timm network's is for `size` and has no fc."""
    offline = "name a local file with --weights PATH, or start from random with --weights none"
    timm = arch.removeprefix(TIMM) if arch.startswith(TIMM) else None
    if timm and weights == "imagenet":
        return timm_state(timm, size)
    if not timm and (weights == "imagenet" or weights.startswith("IMAGENET1K_")):
        sets = models.get_model_weights(arch)
        name = "IMAGENET1K_V1" if weights == "imagenet" else weights
        if name not in sets.__members__:
            raise InputError(f"torchvision has no weights {name} for {arch}, only {', '.join(sets.__members__)}")
        try:
            return dict(sets[name].get_state_dict(progress=True, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise InputError(f"the ImageNet weights of {arch} could not be downloaded ({error}); {offline}") from None
    if not Path(weights).is_file():
        raise InputError(f"--weights {weights}: no such file; {offline}")
    state = read_state_dict(weights, flow_order)
    ours = any(name.startswith("trunk.") for name in state)
    return timm_state(timm, size, state) if timm and not ours else state


def cross_modality(weight: Tensor, in_channels: int) -> Tensor:
    """Turn first-convolution weights for RGB (O, 3, k, k) into (O, in_channels, k, k): their mean, repeated.

    TSN (Wang et al. 2016), section 3.2, "cross modality pre-training".
    """
    return weight.mean(1, keepdim=True).repeat(1, in_channels, 1, 1)


def fit_imagenet(state: Mapping[str, Tensor], model: Network) -> dict[str, Tensor]:
    """Adapt ImageNet weights to `model`: input channels by cross-modality, other classes by a fresh `fc`."""
    own, result = model.state_dict(), dict(state)
    for name in model.first_weights:
        first = result.get(name)
        if first is not None and first.ndim == 4 and first.shape[1] == 3 and own[name].shape[1] != 3:
            result[name] = cross_modality(first, own[name].shape[1])
    for name in ("fc.weight", "fc.bias"):
        absent = not model.stages and name not in result  # timm's own last layer is not used
        if absent or (name in result and result[name].shape != own[name].shape):
            result[name] = own[name]
    return result


def parameter_groups(model: Network, lr: float, weight_decay: float, conv1_lr_factor: float = 1.0) -> list[dict]:
    """Make SGD's parameter groups: an lr factor for the first convolution, no decay for biases and BN.

    Excluding biases and BN from decay follows He et al. 2019, "Bag of Tricks", section 3.1.
    """
    groups: list[dict] = [  # a schedule multiplies "initial_lr"
        {"params": [], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for rate, decay in ((lr * conv1_lr_factor, weight_decay), (lr, weight_decay), (lr, 0.0))
    ]
    for name, parameter in model.named_parameters():
        group = 0 if name in model.first_weights else 1 if parameter.ndim > 1 else 2
        groups[group]["params"].append(parameter)  # SGD skips frozen parameters, because they have no gradient
    return groups


def freeze_batchnorm(model: nn.Module) -> None:
    """Apply partial BN (TSN, section 3.2): every batch norm but the first keeps its statistics and weights.

    Call it after each `model.train()`, which would otherwise switch them back to updating.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms[1:]:
        norm.eval()
        norm.requires_grad_(False)


def explain_mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Explain in one line how a state_dict differs from what `model` needs; None if it fits."""
    own = model.state_dict()
    if not (own.keys() & state.keys()) - {"fc.weight", "fc.bias"}:
        return "none of its tensors is this network's: it holds another network, or a head on features alone"
    if "fc.weight" in state and len(state["fc.weight"]) != len(own["fc.weight"]):
        return f"it has {len(state['fc.weight'])} classes, not {len(own['fc.weight'])}"
    for name in sorted(own.keys() & state.keys()):
        if own[name].shape != state[name].shape:
            return f"its {name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
    odd = sorted(name for name in own.keys() ^ state.keys() if not name.endswith("num_batches_tracked"))
    return f"{plural(len(odd), 'tensor')} missing or too many, such as {odd[0]}" if odd else None
