"""From images to network input: the Preparation in checkpoints, crops, sizes, flips, colours, normalisation.

Crop boxes are chosen in the loader's workers and applied before resizing. Flips, colours and all per-pixel
operations run on the device, for the whole batch at once.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field
from torch import Tensor

from common.formats import Count, Finite, Natural, Positive, check
from utils import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (299, 587, 114)  # thousandths of red, green and blue in grey (ITU-R BT.601), as in JPEG
DIFFERENCES = ("rgbdiff", "greydiff")
TSN_SCALES = (1.0, 0.875, 0.75, 0.66)  # TSN (Wang et al. 2016), section 3.2, and its released code
RESIZED_AT_ONCE = 4  # images: enough to be worth the call, few enough to stay in the cache
CENTER_FRACTION = 224 / 256  # the usual evaluation crop: 224 of a 256-pixel short side

Side = Annotated[Count, Field(le=1 << 14)]


@dataclass(frozen=True)
class Preparation:
    """How images on disk become network input. It is stored in every checkpoint, so nobody has to guess.

    The fields from `flow_method` to `quality` say how the images on disk were extracted (data/extract_*.py),
    if known; predict.py treats a video in the same way.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    modality: Annotated[str, Field(pattern="^(rgb|flow|rgbdiff|greydiff)$")] = "rgb"
    size: Side = 224
    test_resize: Annotated[str, Field(pattern="^(squash|center|crop)$")] = "squash"  # what evaluation sees
    mean: tuple[Finite, ...] = IMAGENET_MEAN  # per channel of one image (3 of RGB, 1 of flow), of pixel / 255
    std: tuple[Positive, ...] = IMAGENET_STD
    stack_length: Annotated[Count, Field(le=1000)] = 1  # flow pairs or frame differences in a clip; 1 for RGB
    flow_method: str | None = None  # tvl1, dis, raft_large, raft_small or flo
    flow_bound: Positive | None = None  # in pixels
    sampling_rate: Count | None = None  # 1: every frame, N: every N-th
    short_side: Natural | None = None  # in pixels; 0: the video's own size
    quality: Natural | None = None  # JPEG quality
    margin: Natural = 0  # time steps that evaluation leaves out at either end, if a video has so many
    picture: Positive | None = None  # flow in pixels that is white or black in a picture of it (flow_picture)

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        length = self.stack_length
        flow = 3 if self.picture else 2 * length
        return {"rgb": 3, "flow": flow, "rgbdiff": 3 * length, "greydiff": length}[self.modality]

    @property
    def clip_length(self) -> int:
        """Consecutive time steps in one clip: frames (rgb and differences) or flow pairs (flow)."""
        return self.stack_length + 1 if self.modality in DIFFERENCES else self.stack_length

    @property
    def affine(self) -> tuple[list[float], list[float]]:
        """(scale, offset) per channel of one image: (grey / 255 - mean) / std = scale * grey + offset."""
        scale = [1 / (255 * std) for std in self.std]
        return scale, [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]

    def with_extraction(self, settings: dict[str, Any]) -> "Preparation":
        """Return a copy for images made with these settings of extraction.json; {}: of unknown origin."""
        method = settings.get("model", settings.get("method"))  # for raft, the name of its network
        same: dict[str, Any] = {name: settings.get(name) for name in ("sampling_rate", "short_side", "quality")}
        return replace(self, flow_method=method, flow_bound=settings.get("bound"), **same)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preparation":
        """Invert `as_dict`. Raises InputError for a key or value that this version does not know."""
        return check(values, SavedPreparation, "the preparation in a checkpoint", "update this program")


def _fits(preparation: Preparation) -> Preparation:
    """Check the rules between fields. Raises ValueError."""
    means, stds = len(preparation.mean), len(preparation.std)
    if means != stds or not means or preparation.channels % means:
        raise ValueError(f"{means} means and {stds} stds do not fit {preparation.channels} channels")
    if preparation.picture and preparation.modality != "flow":
        raise ValueError(f"a flow picture of {preparation.modality}")
    return preparation


SavedPreparation: Any = Annotated[Preparation, AfterValidator(_fits)]  # as stored in files


def default_preparation(modality: str, size: int, test_resize: str, stack_length: int = 1) -> Preparation:
    """Return the preparation for a training that starts from scratch.

    RGB takes ImageNet's mean and std, as its weights were trained with. Flow is centred on 0.5 (no motion)
    and scaled by the mean of ImageNet's std, as in tsn-pytorch. A difference of two frames has mean 0 and
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


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop(height: int, width: int, size: int, rng: np.random.Generator) -> Box:
    """Choose a random size x size box; if the image is smaller, its largest square."""
    side = min(size, height, width)
    return Box(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)


def multiscale_crop(
    height: int, width: int, rng: np.random.Generator, scales: Sequence[float] = TSN_SCALES, positions: int = 5
) -> Box:
    """TSN's corner cropping with scale jittering (section 3.2): sides from `scales` of the short side.

    Height and width are drawn together from neighbouring scales, so the aspect changes a little. The box then
    goes to one of 5 places (corners, centre) or 13 (also the middles of edges and quarters).
    """
    short = min(height, width)
    sides = [int(short * scale) for scale in scales]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    box_height, box_width = pairs[rng.integers(len(pairs))]
    places = _places(height - box_height, width - box_width, positions)
    top, left = places[rng.integers(len(places))]
    return Box(top, left, box_height, box_width)


def _places(free_height: int, free_width: int, positions: int) -> list[tuple[int, int]]:
    """Return the top-left corners of a box that leaves this much free: 5 or 13, as in TSN's released code."""
    quarters = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    if positions == 13:
        quarters += [(0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(i * free_height // 4, j * free_width // 4) for i, j in quarters]


def test_boxes(height: int, width: int, resize: str, views: int, size: int) -> list[Box]:
    """Return evaluation's crop boxes: 1, or the 4 corners and the centre (views 5); 2 and 10 add their flips.

    Objects appear as large as in training if these go together:
    `squash`, the whole image with its aspect changed, and training's squash (the original's evaluation);
    `crop`, a square of `size` image pixels, and random crops, which are as large;
    `center`, a square of 224/256 of the short side, and multi-scale crops, relative to that side (TSN's).
    For a short side of 256 and a `size` of 224, `crop` and `center` are the same.
    """
    if resize == "squash":
        if views > 2:
            raise InputError(f"--test-views {views} takes corner crops, and --test-resize squash has none: use center")
        return [Box(0, 0, height, width)]
    short = min(height, width)
    side = min(size, short) if resize == "crop" else round(short * CENTER_FRACTION)
    *corners, centre = _places(height - side, width - side, 5)
    places = [centre, *corners] if views >= 5 else [centre]
    return [Box(top, left, side, side) for top, left in places]


def stack_resized(crops: Iterable[np.ndarray], count: int, size: int) -> Tensor:
    """Resize `count` uint8 crops (planes, height, width) of one shape to (count, planes, size, size).

    RGB comes out channels last, as decoders and networks use it. Crops are taken from the iterator and
    resized a few at a time, while they are in the processor's cache.
    """
    rest, result = iter(crops), torch.empty(0)
    for done in range(0, count, RESIZED_AT_ONCE):
        block = list(itertools.islice(rest, RESIZED_AT_ONCE))
        images = empty_images(len(block), *block[0].shape)
        for slot, crop in zip(images.numpy(), block, strict=True):
            slot[:] = crop
        if not done:
            result = empty_images(count, len(block[0]), size, size)
        result[done : done + len(block)] = resize_planes(images, size)
    return result


def empty_images(count: int, planes: int, height: int, width: int, memory: Tensor | None = None) -> Tensor:
    """Allocate uint8 images (count, planes, height, width): RGB channels last, flow plane by plane.

    If given, `memory` (count * planes * height * width,) uint8 is used.
    """
    if memory is None:
        memory = torch.empty(count * planes * height * width, dtype=torch.uint8)
    if planes == 3:
        return memory.view(count, height, width, planes).permute(0, 3, 1, 2)
    return memory.view(count, planes, height, width)


def resize_planes(planes: Tensor, size: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) to (N, C, size, size): bilinear with antialiasing, as Pillow does.

    Single-plane images (flow) are resized in groups of four, because torch's fast uint8 path handles up to
    four interleaved channels: 6 times faster than one by one, with the same pixels.
    """
    n, channels, height, width = planes.shape
    if (height, width) == (size, size):
        return planes
    if channels != 3:
        flat = planes.reshape(n * channels, height, width)
        planes = torch.cat([flat, flat.new_zeros(-len(flat) % 4, height, width)]).reshape(-1, 4, height, width)
    resized = torch.nn.functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return resized if channels == 3 else resized.reshape(-1, size, size)[: n * channels].unflatten(0, (n, channels))


def flip_clips(clips: Tensor, flip: Tensor, modality: str) -> Tensor:
    """Mirror left to right those uint8 clips (N, C, H, W) for which `flip` (N,) is true.

    Mirroring turns motion to the right into motion to the left. For flow the x planes (even channels, or the
    first of a picture's three) are therefore negated, which is 255 - x in the quantised images; y stays.
    """
    mirrored = clips.flip(-1)
    if modality == "flow":
        step = 3 if clips.shape[1] == 3 else 2
        mirrored[:, 0::step] = 255 - mirrored[:, 0::step]
    return torch.where(flip[:, None, None, None], mirrored, clips)


def flow_picture(images: Tensor, preparation: Preparation) -> Tensor:
    """Turn quantised flow (N, 2, H, W) uint8 into pictures (N, 3, H, W) uint8, channels last: x, y and speed.

    Without motion, x and y are grey and speed is black. x and y reach black and white, and speed reaches
    white, at `picture` pixels. A network trained on photographs takes these pictures unchanged.
    """
    assert preparation.picture is not None
    unit = (preparation.flow_bound or 20.0) / preparation.picture / 127.5
    flow = images.to(torch.float32).sub_(128).mul_(unit).clamp_(-1, 1)  # (N, 2, H, W), in units of `picture` pixels
    speed = flow.square().sum(1, keepdim=True).sqrt_().clamp_(max=1)  # (N, 1, H, W)
    picture = torch.cat((flow.add_(1).mul_(127.5), speed.mul_(255)), 1)  # (N, 3, H, W)
    return picture.round_().to(torch.uint8, memory_format=torch.channels_last)


def grey_levels(clips: Tensor, modality: str, out: Tensor) -> Tensor:
    """Write what a network sees of uint8 clips (N, images x planes, H, W), as grey levels, to `out`.

    Returns `out`, (N, channels, H, W): the pixels themselves, or for rgbdiff the next image minus each image,
    whole numbers from -255 to 255, which bfloat16 holds exactly. For greydiff, images are made grey first:
    three differences then form a three-plane picture, which ImageNet's first convolution takes unchanged.
    """
    if modality == "rgbdiff":
        return out.copy_(clips[:, 3:]).sub_(clips[:, :-3])  # one three-plane image fewer
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
    for numbers, apply in zip(preparation.affine, (x.mul_, x.add_), strict=True):
        # Made on the device: a copy to a GPU would wait for all that runs there.
        vector = torch.stack([x.new_full((), number) for number in numbers]).repeat(x.shape[1] // len(numbers))
        apply(vector[:, None, None])
    return x
