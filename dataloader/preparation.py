"""What turns images into a network's input, stored in every checkpoint: size, normalisation, how they were extracted.

Everything per pixel value (pictures of flow, differences, float, normalisation) is a function of one Preparation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field
from torch import Tensor

from common.formats import Count, Finite, Natural, Positive, check

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R BT.601), as JPEG has it
DIFFERENCES = ("rgbdiff", "greydiff")


Side = Annotated[Count, Field(le=1 << 14)]


@dataclass(frozen=True)
class Preparation:
    """What turns images on disk into a network's input. Stored in every checkpoint, so nobody guesses.

    `mean` and `std` are per channel of one image (3 for RGB, 1 for flow), in units of pixel / 255.
    `stack_length` is the number of flow pairs (or frame differences) in a clip; 1 for RGB.
    `margin` is how many time steps at either end of a video a test's samples leave out, as far as it has so many.
    `picture` makes of each flow image a picture of three planes, for a network of ImageNet as it is: the pixels of flow
    at which it is white or black (flow_picture).
    The rest is how the images on disk were extracted (data/extract_*.py), as far as that is known: predict.py
    does the same to a video. `flow_method` is tvl1, dis, raft_large, raft_small or flo.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    modality: Annotated[str, Field(pattern="^(rgb|flow|rgbdiff|greydiff)$")] = "rgb"
    size: Side = 224
    test_resize: Annotated[str, Field(pattern="^(squash|center|crop)$")] = "squash"  # what a test sees
    mean: tuple[Finite, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    stack_length: Annotated[Count, Field(le=1000)] = 1
    flow_method: str | None = None
    flow_bound: Positive | None = None  # in pixels
    sampling_rate: Count | None = None  # every how many frames
    short_side: Natural | None = None  # in pixels; 0: the video's own size
    quality: Natural | None = None  # of JPEG
    margin: Natural = 0
    picture: Positive | None = None

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        flow = 3 if self.picture else 2 * self.stack_length
        diff = self.stack_length
        return {"rgb": 3, "flow": flow, "rgbdiff": 3 * diff, "greydiff": diff}[self.modality]

    @property
    def clip_length(self) -> int:
        """Consecutive time steps on disk that make one clip: frames (rgb and differences) or flow pairs (flow)."""
        return self.stack_length + 1 if self.modality in DIFFERENCES else self.stack_length

    @property
    def affine(self) -> tuple[list[float], list[float]]:
        """(scale, offset) per channel of one image: a network's input, (grey / 255 - mean) / std, is their line."""
        scale = [1 / (255 * std) for std in self.std]
        return scale, [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]

    def with_extraction(self, settings: dict[str, Any]) -> Preparation:
        """The same, for images made with these settings of extraction.json; {} for images of unknown origin."""
        return replace(
            self,
            flow_method=settings.get("model", settings.get("method")),  # of raft, which of its two networks
            flow_bound=settings.get("bound"),
            sampling_rate=settings.get("sampling_rate"),
            short_side=settings.get("short_side"),
            quality=settings.get("quality"),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preparation:
        """The inverse of `as_dict`. A key or value that this version does not know is an InputError, not a guess."""
        return check(values, SavedPreparation, "the preparation in a checkpoint", "update this program")


def _fits(preparation: Preparation) -> Preparation:
    """The rules between fields. Raises ValueError."""
    means, stds = len(preparation.mean), len(preparation.std)
    if means != stds or not means or preparation.channels % means:
        raise ValueError(f"{means} means and {stds} stds do not fit {preparation.channels} channels")
    if preparation.picture and preparation.modality != "flow":
        raise ValueError(f"a flow picture of {preparation.modality}")
    return preparation


SavedPreparation: Any = Annotated[Preparation, AfterValidator(_fits)]  # as files hold it


def default_preparation(modality: str, size: int, test_resize: str, stack_length: int = 1) -> Preparation:
    """The preparation of a training that starts here.

    RGB takes ImageNet's mean and std, as its weights were trained with. Flow is centred on 0.5 (no motion)
    and scaled by the mean of ImageNet's std, as tsn-pytorch does. A difference of two frames has mean 0 and
    about twice the spread.
    """
    mean_std = round(float(np.mean(IMAGENET_STD)), 4)
    mean, std = {
        "rgb": (IMAGENET_MEAN, IMAGENET_STD),
        "flow": ((0.5,), (mean_std,)),
        "rgbdiff": ((0.0,) * 3, (2 * mean_std,) * 3),
        "greydiff": ((0.0,), (mean_std,)),
    }[modality]
    return Preparation(modality, size, test_resize, mean, std, stack_length)


def flow_picture(images: Tensor, preparation: Preparation) -> Tensor:
    """Quantised flow (N, 2, H, W) uint8 -> pictures (N, 3, H, W) uint8, channels last: x, y and speed.

    x and y are grey where nothing moves and reach black and white at `picture` pixels; speed is black where nothing
    moves and white at so many pixels. A network trained on photographs takes them as they are.
    """
    assert preparation.picture is not None
    unit = (preparation.flow_bound or 20.0) / preparation.picture / 127.5
    flow = images.to(torch.float32).sub_(128).mul_(unit).clamp_(-1, 1)  # (N, 2, H, W), in units of `picture` pixels
    speed = flow.square().sum(1, keepdim=True).sqrt_().clamp_(max=1)  # (N, 1, H, W)
    picture = torch.cat((flow.add_(1).mul_(127.5), speed.mul_(255)), 1)  # (N, 3, H, W)
    return picture.round_().to(torch.uint8, memory_format=torch.channels_last)


def grey_levels(clips: Tensor, modality: str, out: Tensor) -> Tensor:
    """What of uint8 clips (N, images x planes, H, W) a network sees, in grey levels, in `out` (N, channels, H, W).

    The pixels themselves, or for rgbdiff the next image's less each image's: whole numbers from -255 to 255, which
    bfloat16 holds exactly. For greydiff images are made grey first, so that three differences are a picture of three
    planes, which ImageNet's first convolution takes as it is.
    """
    if modality == "rgbdiff":
        return out.copy_(clips[:, 3:]).sub_(clips[:, :-3])  # one image of three planes fewer
    if modality == "greydiff":
        red, green, blue = (clips[:, plane::3].int() * LUMA[plane] for plane in range(3))
        grey = (red + green + blue + 500) // 1000  # (N, images, H, W)
        return out.copy_(grey[:, 1:] - grey[:, :-1])  # (N, images - 1, H, W)
    return out.copy_(clips)


def to_input(clips: Tensor, preparation: Preparation) -> Tensor:
    """uint8 clips (N, images x planes, H, W) -> normalised float32 network input (N, channels, H, W)."""
    n, _, height, width = clips.shape
    x = torch.empty(n, preparation.channels, height, width, device=clips.device)
    x = grey_levels(clips, preparation.modality, x.contiguous(memory_format=torch.channels_last))
    scale, offset = (_vector(numbers, x).repeat(x.shape[1] // len(numbers)) for numbers in preparation.affine)
    return x.mul_(scale[:, None, None]).add_(offset[:, None, None])


def _vector(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A float tensor on a tensor's device, made there: a copy to a GPU would wait for all that runs on it."""
    return torch.stack([like.new_full((), number) for number in numbers])
