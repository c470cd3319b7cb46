"""Networks of the package timm (--arch timm:NAME), in this project's form: a trunk and fc."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils import InputError

TIMM = "timm:"  # prefix of timm's architecture names, with or without the tag of the weights


class TimmNet(nn.Module):
    """timm's network as `trunk`, plus our own last layer: (N, in_channels, size, size) -> (N, num_classes).

    The trunk returns the input of timm's own last layer, (N, features). Raises InputError if timm doesn't
    have the name, or if the network doesn't support the number of channels or the size. The methods are those
    of network.ResNet.
    """

    stages = ()  # timm's networks have none in common

    def __init__(self, name: str, in_channels: int, num_classes: int, size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = _create(name, size, in_chans=in_channels, num_classes=0)
        with _one_line(name, size), torch.no_grad():  # some reject a size only when they get an image
            features = self.trunk.eval()(torch.zeros(1, in_channels, size, size)).shape[1]
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        self.train()
        # A network that begins with parallel branches has more than one first layer.
        self.first_weights = tuple(f"trunk.{first}.weight" for first in _names(_config(name).first_conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.trunk(x)))

    def below_fc(self) -> nn.Sequential:
        return nn.Sequential(self.trunk, nn.Flatten())


def normalisation(name: str) -> dict[str, tuple[float, ...]]:
    """The RGB mean and std, in units of pixel / 255, with which timm's weights of this name were trained."""
    config = _config(name)
    return {"mean": tuple(map(float, config.mean)), "std": tuple(map(float, config.std))}


def timm_state(name: str, size: int, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A TimmNet's RGB weights without fc: `state` (timm's names), by default timm's own, downloaded once."""
    classifiers = _names(_config(name).classifier)
    if state is None:
        trunk = _create(name, size, pretrained=True, num_classes=0)
    else:  # timm adapts them to the size and loads strictly unless it drops a last layer
        classes = next((len(state[f"{last}.weight"]) for last in classifiers if f"{last}.weight" in state), 0)
        trunk = _create(name, size, pretrained=True, num_classes=classes,
                        pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes})  # fmt: skip
    below = {key: value for key, value in trunk.state_dict().items() if key.rpartition(".")[0] not in classifiers}
    return {f"trunk.{key}": value for key, value in below.items()}


def _config(name: str) -> Any:
    """timm's config of a network's weights and input. Raises InputError if timm or the network is missing."""
    try:
        import timm

        return timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except ImportError:
        raise InputError(f"networks {TIMM}NAME need the package timm: pip install timm") from None
    except RuntimeError:
        raise InputError(f"--arch {TIMM}{name}: timm has no such network; timm.list_models() lists them") from None


def _create(name: str, size: int, **options: Any) -> nn.Module:
    config = _config(name)
    if config.fixed_input_size and config.input_size[-1] != size:
        options["img_size"] = size
    import timm  # _config has found it

    with _one_line(name, size):
        return timm.create_model(name, **options)


@contextlib.contextmanager
def _one_line(name: str, size: int) -> Iterator[None]:
    """Turn timm's errors, including failed downloads, into a one-line InputError."""
    try:
        yield
    except (OSError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, OSError):
            raise InputError(f"timm's weights of {name} could not be downloaded ({reason}); name a local file with "
                             "--weights PATH, or start from random with --weights none") from None  # fmt: skip
        raise InputError(f"--arch {TIMM}{name} at --size {size}: timm refuses that ({reason})") from None


def _names(named: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return a config's entry, a name, several names or None, as a tuple."""
    return (named,) if isinstance(named, str) else tuple(named or ())
