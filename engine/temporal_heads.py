"""Small networks on pooled features: (videos, samples, features) -> logits (videos, classes).

TS-LSTM and Temporal-Inception follow Ma, Chen, Kira, AlRegib 2017, arXiv 1703.10667, sections 3.3 and 3.4,
with the sizes of the authors' code: 9.52 and 4.30 million parameters for 4096 features and 101 classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import InputError


class LinearHead(nn.Module):
    """A linear head on the mean over a video's samples."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(1))


class TemporalSegmentLSTM(nn.Module):
    """TS-LSTM: batch norm and max over time in each of three segments, then an LSTM over the segments."""

    SEGMENTS = 3
    fewest_samples = 3

    def __init__(self, features: int, classes: int, hidden: int = 512) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(features) for _ in range(self.SEGMENTS))
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc = nn.Linear(hidden, classes)
        # Jozefowicz et al. 2015: an LSTM whose forget gate starts open learns sooner.
        with torch.no_grad():
            parameters = dict(self.lstm.named_parameters())
            for gate in parameters["weight_hh_l0"].chunk(4):
                nn.init.orthogonal_(gate)
            parameters["bias_hh_l0"].zero_()
            parameters["bias_ih_l0"].zero_()[hidden : 2 * hidden] = 1

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1] // self.SEGMENTS  # with 25 samples the last is dropped, as in the authors' code
        segments = []
        for norm, part in zip(self.norms, x.split(length, 1), strict=False):  # (videos, length, features)
            # Normalise each step by itself, as the authors do.
            segments.append(torch.stack([norm(step) for step in part.unbind(1)]).amax(0))
        outputs, _ = self.lstm(torch.stack(segments, 1))  # (videos, segments, hidden)
        return self.fc(self.norm(outputs[:, -1]))


class TemporalInception(nn.Module):
    """Temporal convolutions of 5 and 7 samples in parallel, shared by all features, at four time scales."""

    fewest_samples = 8

    def __init__(self, features: int, classes: int, hidden: int = 1024, dropout: float = 0.2) -> None:
        super().__init__()
        channels = (1, 2, 4, 8)  # each module doubles them
        self.fives = nn.ModuleList(nn.Conv2d(c, c, (1, 5), padding=(0, 2)) for c in channels)
        self.sevens = nn.ModuleList(nn.Conv2d(c, c, (1, 7), padding=(0, 3)) for c in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * c) for c in channels)
        merge: list[nn.Module] = []
        for more, fewer in ((16, 4), (4, 2), (2, 1)):
            merge += [nn.Conv2d(more, fewer, 1), nn.BatchNorm2d(fewer), nn.ReLU()]
        self.merge = nn.Sequential(*merge, nn.Dropout2d(dropout))
        self.classify = nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                                      nn.Dropout(dropout), nn.Linear(hidden, classes))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(1)  # (videos, 1, features, samples)
        x = x.contiguous(memory_format=torch.channels_last)  # 1.6 times as fast on a CPU
        for place, (five, seven, norm) in enumerate(zip(self.fives, self.sevens, self.norms, strict=True)):
            x = norm(torch.cat((five(x), seven(x)), 1)).relu()  # (videos, 2 C, features, samples)
            # 25 samples become 12, 6, 3 and 1.
            x = nn.functional.max_pool2d(x, (1, 2)) if place < 3 else x.amax(-1, keepdim=True)
        # (videos, 16, features, 1) -> (videos, features) -> (videos, classes)
        return self.classify(self.merge(x).flatten(1))


@dataclass(frozen=True)
class Recipe:
    """How a temporal head is trained: Adam, at a rate that depends on the epoch alone, so any can be last."""

    build: Callable[[int, int], nn.Module]  # (features, classes)
    lr: float
    batch_size: int
    epochs: int  # maximum; the number used is chosen on held-out videos
    clip: float = 0.0  # clips each gradient value to +- this; 0: off
    decay: float = 0.0  # weight decay: added to the gradient, times the weight (L2, as in torch.optim)
    drop_every: int = 0  # divide the learning rate by 10 each time this many epochs have passed; 0: never


TEMPORAL = {"ts-lstm": Recipe(TemporalSegmentLSTM, 1e-4, 64, 100, 5.0),
            "inception": Recipe(TemporalInception, 5e-5, 16, 30, decay=0.1, drop_every=10)}  # fmt: skip


def build_head(kind: str, features: int, classes: int) -> nn.Module:
    """Return the head named `kind`: "linear" or a key of TEMPORAL."""
    return LinearHead(features, classes) if kind == "linear" else TEMPORAL[kind].build(features, classes)


def train_temporal(
    recipe: Recipe, streams: Sequence[np.ndarray], labels: np.ndarray, classes: int, rows: np.ndarray, epochs: int,
    seed: int, device: torch.device, held_out: np.ndarray | None = None, tick: Callable[[], Any] = lambda: None,
) -> tuple[nn.Module, np.ndarray]:  # fmt: skip
    """Train a head on some videos; return it and the held-out videos' logits after each epoch.

    streams: arrays (V, samples, features), concatenated one batch at a time, because two streams of UCF101 in
    float32 would take 8 GB. rows and held_out: (n,) and (m,) indices. The logits are float32 (epochs, m,
    classes). The result depends only on the arguments. Raises InputError for too few samples.
    """
    samples = streams[0].shape[1]
    torch.manual_seed(seed)
    head = recipe.build(sum(one.shape[2] for one in streams), classes).to(device)
    if samples < head.fewest_samples:
        raise InputError(f"{samples} samples per video are too few: extract features with --test-samples 25")
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(head.parameters(), lr=recipe.lr, weight_decay=recipe.decay, fused=fused)
    targets = torch.from_numpy(labels)
    rng = np.random.default_rng(seed)
    curve = []
    for epoch in range(epochs):
        if recipe.drop_every:
            optimizer.param_groups[0]["lr"] = recipe.lr / 10 ** (epoch // recipe.drop_every)
        head.train()
        # Parts of nearly equal size: batch norm cannot take a last batch of one.
        for batch in np.array_split(rng.permutation(rows), -(-len(rows) // recipe.batch_size)):
            loss = nn.functional.cross_entropy(head(gather(streams, batch, device)), targets[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_value_(head.parameters(), recipe.clip)
            optimizer.step()
        if held_out is not None:
            curve.append(predict_temporal(head, streams, held_out, device))
        tick()
    return head.eval(), np.stack(curve) if curve else np.empty((0, 0, classes), np.float32)


@torch.inference_mode()
def predict_temporal(
    head: nn.Module, streams: Sequence[np.ndarray], rows: np.ndarray, device: torch.device
) -> np.ndarray:
    """Return the logits of the videos at `rows`, (n, classes) float32."""
    head.eval()
    parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    return torch.cat([head(gather(streams, part, device)) for part in parts]).float().cpu().numpy()


def gather(streams: Sequence[np.ndarray], rows: np.ndarray, device: torch.device) -> Tensor:
    """Return the features of `rows` on the device, (n, samples, features of all streams) float32."""
    return torch.cat([torch.from_numpy(one[rows]).to(device).float() for one in streams], 2)
