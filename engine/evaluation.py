"""Evaluation: a checkpoint's network, its copy for inference, and the evaluation of all videos."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.accuracy import accuracy, cross_entropy, mean_logits
from common.progress import progress_bar
from common.timm_network import TIMM
from dataloader.clips import Batch, Loader, clips_of, sent_ahead
from dataloader.preparation import DIFFERENCES, Preparation, grey_levels, to_input
from engine.training import Training
from network import Network, ResNet, build_model, explain_mismatch
from saved.checkpoint_reader import Checkpoint
from utils import InputError, processes, rank

STAGES = ("layer1", "layer2", "layer3", "layer4")
POOLINGS = tuple(f"{stage}.{pool}" for stage in STAGES for pool in ("mean", "max"))
PRE_LOGITS = "pre-logits"  # what the last layer of a timm network sees; these have no stages in common


def trained_model(checkpoint: Checkpoint, size: int | None = None) -> Network:
    """Build the network of any project's checkpoint, in evaluation mode.

    `size` overrides the checkpoint's image size, in pixels; some timm networks accept only one size.
    """
    size = size or Preparation.from_dict(checkpoint.preparation).size
    # Spend no memory and random numbers on weights that are replaced at once. timm networks must be real,
    # because some hold tables that are in no checkpoint.
    with torch.random.fork_rng([]), torch.device("cpu" if checkpoint.arch.startswith(TIMM) else "meta"):
        model = build_model(checkpoint.arch, checkpoint.in_channels, checkpoint.num_classes, size=size)
    if problem := explain_mismatch(model, checkpoint.state_dict):
        raise InputError(f"{checkpoint.path} does not fit {checkpoint.arch}: {problem}")
    model.load_state_dict(checkpoint.state_dict, assign=True)
    return model.eval()


class PooledTrunk(nn.Module):
    """A ResNet without its last layer: (N, channels, H, W) -> (N, features), the poolings concatenated."""

    def __init__(self, trunk: ResNet, pooling: Sequence[str]) -> None:
        super().__init__()
        self.trunk, self.pooling = trunk, tuple(pooling)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk.stem(x)
        found: dict[str, Tensor] = {}
        for stage in STAGES[: STAGES.index(max(self.pooling).partition(".")[0]) + 1]:  # later ones are not needed
            x = getattr(self.trunk, stage)(x)  # (N, C, H / 4, W / 4); later stages double C and halve the sides
            if f"{stage}.mean" in self.pooling:
                found[f"{stage}.mean"] = x.mean((2, 3), dtype=torch.float32)  # (N, C)
            if f"{stage}.max" in self.pooling:
                found[f"{stage}.max"] = x.amax((2, 3)).float()
        return torch.cat([found[name] for name in self.pooling], 1)


def feature_count(model: Network, pooling: Sequence[str]) -> int:
    """Return the number of features that the poolings produce. Each stage of a ResNet doubles them."""
    if not model.stages:
        return model.fc.in_features
    return sum(model.fc.in_features >> STAGES[::-1].index(name.partition(".")[0]) for name in pooling)


def fold_batchnorm(model: ResNet) -> None:
    """Fold every batch norm (evaluation mode) into the convolution before it, in place."""
    fuse = nn.utils.fusion.fuse_conv_bn_eval
    for module in list(model.modules()):
        names: dict[str, Any] = dict(module.named_children())
        for index in ("1", "2", "3"):
            if isinstance(names.get("bn" + index), nn.BatchNorm2d):
                setattr(module, "conv" + index, fuse(names["conv" + index], names["bn" + index]))
                setattr(module, "bn" + index, nn.Identity())
        if isinstance(names.get("downsample"), nn.Sequential):
            module.downsample = fuse(*names["downsample"])


class InferenceNet(nn.Module):
    """A copy of a trained network for inference: batch norms folded, channels last, the trunk in `dtype`.

    Takes uint8 clips (N, images x planes, H, W) and returns float32 logits (N, classes) and pooled features
    (N, features). The normalisation is folded into the first convolution, whose input is then whole grey
    levels, counted from mid-grey (no motion in flow). bfloat16 holds these exactly, and most of them are small,
    which keeps the effect of rounded weights small. The last layer stays in float32, so that logits are not
    rounded to bfloat16's three digits. timm networks are not folded and compute as in training.
    """

    LEVELS = 64.0  # grey levels per unit of network input: a power of two close to 255 * std
    outside: Tensor

    def __init__(
        self, model: Network, preparation: Preparation, dtype: torch.dtype = torch.float32, compiled: bool = False,
        pooling: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """With `pooling`, both outputs are the features of these POOLINGS, or PRE_LOGITS."""
        super().__init__()
        known = POOLINGS if model.stages else (PRE_LOGITS,)
        if not set(pooling) <= set(known) or len(set(pooling)) < len(pooling):
            raise InputError(f"--pooling {' '.join(pooling)}: name some of {', '.join(known)}, each once")
        self.preparation, self.dtype, self.pooling = preparation, dtype, tuple(pooling)
        own = copy.deepcopy(model).eval()
        self.fc = nn.Identity() if pooling else own.fc
        self.folded = isinstance(own, ResNet)  # timm's batch norms may include activations
        if isinstance(own, ResNet):
            fold_batchnorm(own)
            self._fold_normalisation(own, preparation, dtype)
            self.trunk: nn.Module = (PooledTrunk(own, pooling) if pooling else own.below_fc()).to(dtype)
        else:
            self.trunk = own.below_fc()
        self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)
        self.compiled = compiled
        if compiled:  # freezing lets the compiler lay out the weights once, as the kernels need them
            self.trunk.compile(options={"freezing": True})

    def _fold_normalisation(self, trunk: Any, preparation: Preparation, dtype: torch.dtype) -> None:
        # normalised = scale * grey + offset = LEVELS * scale * ((grey - centre) / LEVELS - outside)
        images = preparation.channels // len(preparation.mean)
        first, device = trunk.conv1, trunk.conv1.weight.device
        scale, offset = (torch.tensor(values, device=device).repeat(images) for values in preparation.affine)
        self.modality = preparation.modality
        self.centre = 0 if self.modality in DIFFERENCES else 128
        outside = -(offset / scale + self.centre) / self.LEVELS
        with torch.no_grad():
            first.weight *= (self.LEVELS * scale)[:, None, None]
            first.bias -= torch.einsum("ocij,c->o", first.weight, outside)
        self.border = first.padding[0]  # padding is done by hand, because a normalised 0 is not 0 here
        first.padding = (0, 0)
        self.register_buffer("outside", outside[:, None, None].to(dtype))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        x = self._grey_levels(clips) if self.folded else to_input(clips, self.preparation)  # (N, channels, H, W)
        # Compile once for any number of clips: the last batch is smaller.
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        mixed = not self.folded and self.dtype != torch.float32
        with torch.autocast(clips.device.type, self.dtype, enabled=mixed):
            features = self.trunk(x).float()  # (N, features)
        return self.fc(features), features  # (N, classes), (N, features)

    def _grey_levels(self, clips: Tensor) -> Tensor:
        (n, _, height, width), edge = clips.shape, self.border
        x = self.outside.expand(n, -1, height + 2 * edge, width + 2 * edge)  # (channels, 1, 1) to (N, channels, H', W')
        x = x.contiguous(memory_format=torch.channels_last)
        inside = x[:, :, edge:-edge, edge:-edge]
        grey_levels(clips, self.modality, inside).sub_(self.centre).mul_(1 / self.LEVELS)
        return x


@dataclass(frozen=True)
class TestResult:
    """The result of an evaluation. Logits are float32, (samples, classes) per video, averaged over views."""

    frame_logits: dict[str, np.ndarray]
    labels: dict[str, int]
    loss: float  # cross-entropy of the consensus over a video's clips that training uses
    accuracy: dict[str, float]  # top1, top5, mean_class in per cent
    batch_time: float
    data_time: float

    def __str__(self) -> str:
        scores = self.accuracy
        return (f"loss {self.loss:.4f}, top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
                f"mean class {scores['mean_class']:.2f} %")  # fmt: skip


def each_once(batch: Batch) -> tuple[Batch, Tensor]:
    """Return the batch with each distinct clip once, and the place of each original clip among them.

    Short videos repeat clips. `output[place]` turns results for the distinct clips into results for all.
    """
    rows = torch.cat([batch.clips, batch.flip[:, None].to(batch.clips.device)], 1)
    different, place = rows.unique(dim=0, return_inverse=True)
    return batch._replace(clips=different[:, :-1], flip=different[:, -1].bool()), place


@torch.inference_mode()
def test(training: Training, loader: Loader, check_stop: Callable[[], None] = lambda: None) -> TestResult:
    """Compute the logits of all videos, shared among all processes. The training state does not change."""
    preparation, device, settings = training.preparation, training.device, training.settings
    net = InferenceNet(training.model, preparation, training.dtype, settings.compile).to(device)
    sampling = loader.dataset.sampling
    logits: dict[str, np.ndarray] = {}
    start = asked = time.perf_counter()
    waited = 0.0
    with progress_bar(len(loader.dataset), "test", "video", disable=rank() > 0) as bar:
        for batch in sent_ahead(loader.epoch(0), device):
            waited += time.perf_counter() - asked
            if batch.weight:
                different, place = each_once(batch)
                of_clips, _ = net(clips_of(different, preparation.modality, device))  # (different clips, classes)
                of_views = of_clips[place].unflatten(0, (len(batch.names), sampling.views, sampling.samples))
                clip_logits = of_views.mean(1).cpu().numpy()  # (videos, samples, classes)
                logits.update(zip(batch.names, clip_logits, strict=True))
            bar.update(min(len(batch.names) * processes(), bar.total - bar.n))
            check_stop()
            asked = time.perf_counter()
    seconds = time.perf_counter() - start
    if processes() > 1:
        everyone: list[Any] = [None] * processes()
        dist.all_gather_object(everyone, logits)
        logits = {name: value for part in everyone for name, value in part.items()}
    labels = {source.video.name: source.video.label for source in loader.dataset.sources}
    names, truth = list(labels), np.array(list(labels.values()))
    logits = {name: logits[name] for name in names}  # in list order, whichever process did it
    scores = mean_logits(np.stack(list(logits.values())))  # (videos, classes)
    loss = cross_entropy(scores * (sampling.samples if settings.consensus == "sum" else 1), truth, names)
    times = seconds / len(loader), waited / len(loader)
    return TestResult(logits, labels, loss, accuracy(scores, truth, names), *times)
