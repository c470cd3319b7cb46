"""What ImageNet features and logistic regression reach on a few hundred clips, from video files to the fused table.

  python benchmarks/small_data.py ../shared/data/hockey_fights --weights resnet50.pth
  python benchmarks/small_data.py ../shared/data/weizmann --weights resnet50.pth --people

VIDEOS holds a folder for each class. Each clip is seen in three ways by the same ResNet-50, as it is: RGB frames, a
picture of optical flow (DIS; x, y and speed), and a picture of three successive differences of grey. Without --people:
5 stratified folds, twice; with it, each <person>_*.avi's person is left out in turn. Strength C and the weight of the
motion stream are chosen inside the training videos, whose people stay together.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser
from data.flow import dis_flow
from data.videos import import_cv2
from dataloader.preparation import IMAGENET_MEAN, IMAGENET_STD
from network import build_model, fold_batchnorm
from utils import InputError, run_main

SIZE = 160  # short side that the network sees; the whole frame, its aspect kept to within 16 pixels
BOUND = 8.0  # pixels of flow at which its picture is black or white
STRENGTHS = (3.0, 30.0, 300.0, 3000.0)  # C, on z-scores of mean square length 1
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the motion stream in the fusion with chosen weights
MEAN, STD = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))


def main() -> int:
    args = parse_arguments()
    paths = sorted(args.videos.glob("*/*.avi"))
    if not paths:
        raise InputError(f"{args.videos} holds no <class>/<video>.avi")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)  # at strengths that are not chosen
    classes = sorted({path.parent.name for path in paths})
    labels = np.array([classes.index(path.parent.name) for path in paths])
    groups = np.array([path.stem.split("_")[0] if args.people else str(path) for path in paths])
    inputs: dict[str, Callable[[list[np.ndarray], int], Iterator[np.ndarray]]] = {
        "rgb": rgb, "flow": lambda frames, samples: flow(frames, samples, args.flow_side), "grey differences": greys,
    }  # fmt: skip
    features = {}
    for name, prepare in inputs.items():
        start = time.monotonic()
        features[name] = extract(paths, prepare, args.samples, args.weights, flips=name == "flow")
        print(f"{name}: features in {time.monotonic() - start:.0f} s", flush=True)
    heads(features, labels, groups, args.people)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of class folders of .avi files")
    parser.add_argument("--weights", required=True, metavar="PATH", help="ResNet-50 of ImageNet, torchvision's names")
    parser.add_argument("--people", action="store_true", help="leave each person out in turn")
    parser.add_argument("--samples", type=int, default=10, help="moments of each video, spread evenly")
    parser.add_argument("--flow-side", type=int, default=128, help="short side at which flow is found")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


# --- what the network sees: frames (height, width, 3) uint8 RGB -> normalised float32 pictures -------------------


def moments(frames: int, samples: int) -> list[int]:
    """The middles of `samples` equal parts of 0..frames-1."""
    return [int((sample + 0.5) * frames / samples) for sample in range(samples)]


def rgb(frames: list[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    for moment in moments(len(frames), samples):
        yield (resize(frames[moment]).astype(np.float32) / 255 - MEAN) / STD


def greys(frames: list[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Three successive differences of grey as three channels, 0 where nothing moves: no mean is subtracted."""
    for moment in moments(len(frames), samples):
        steps = np.clip(np.arange(moment - 1, moment + 3), 0, len(frames) - 1)
        grey = np.stack([resize(frames[step]).mean(-1, dtype=np.float32) / 255 for step in steps], -1)
        yield np.diff(grey, axis=-1) / STD


def flow(frames: list[np.ndarray], samples: int, side: int) -> Iterator[np.ndarray]:
    """x and y are grey where nothing moves, speed is black; each picture and its mirror image, where x changes sign."""
    small = [resize(frame, side, multiple=2) for frame in frames]
    found = list(dis_flow(small))
    for moment in moments(len(frames), samples):
        one = resize(found[min(moment, len(found) - 1)])
        for sign in (1, -1):
            x, y = sign * one[:, ::sign, 0], one[:, ::sign, 1]
            picture = np.stack((0.5 + x / (2 * BOUND), 0.5 + y / (2 * BOUND), np.hypot(x, y) / BOUND), -1)
            yield (picture.clip(0, 1) - MEAN) / STD


def resize(image: np.ndarray, side: int = SIZE, multiple: int = 32) -> np.ndarray:
    cv2 = import_cv2()
    height, width = image.shape[:2]
    size = (round(width * side / height / multiple) * multiple, side)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if side < height else cv2.INTER_LINEAR)


# --- features ---------------------------------------------------------------------------------------------------


def extract(
    paths: list[Path],
    prepare: Callable[[list[np.ndarray], int], Iterator[np.ndarray]],
    samples: int,
    weights: str,
    flips: bool,
) -> dict[str, np.ndarray]:
    """Of layer3 and layer4, averaged over the image: (videos, 1 or 2 with flips, mean and std over time)."""
    model = fold_batchnorm(build_model("resnet50", 3, 1000, weights).eval())
    model = model.to(torch.bfloat16, memory_format=torch.channels_last)
    found: dict[str, list[Tensor]] = {"layer3": [], "layer4": []}
    for layer, parts in found.items():
        getattr(model, layer).register_forward_hook(lambda _, __, out, parts=parts: parts.append(out.mean((2, 3))))
    result: dict[str, list[np.ndarray]] = {layer: [] for layer in found}
    for path in paths:
        clips = np.stack(list(prepare(read(path), samples)))
        x = torch.from_numpy(clips).permute(0, 3, 1, 2).to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.inference_mode():
            model(x)
        for layer, parts in found.items():
            series = parts.pop().float().numpy().reshape(samples, 1 + flips, -1)
            result[layer].append(np.concatenate((series.mean(0), series.std(0)), -1))
    return {layer: np.stack(rows) for layer, rows in result.items()}


def read(path: Path) -> list[np.ndarray]:
    cv2 = import_cv2()
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    if len(frames) < 2:
        raise InputError(f"{path} has fewer than 2 frames that can be read")
    return frames


# --- heads ------------------------------------------------------------------------------------------------------


def heads(features: dict[str, dict[str, np.ndarray]], labels: np.ndarray, groups: np.ndarray, people: bool) -> None:
    """Print the accuracy of each input and layer, and of the fusion of RGB with each motion input."""
    rows: dict[str, list[float]] = {}
    for train, test in splits(labels, groups, people):
        said = {}
        for name, layers in features.items():
            for layer, x in layers.items():
                held, answers = fit(x[train], labels[train], groups[train], x[test])
                said[f"{name} {layer}"] = held, answers
        spatial = said["rgb layer4"]
        for name in list(said):
            rows.setdefault(name, []).append(correct(said[name][1], labels[test]))
            if not name.startswith("rgb"):
                rows.setdefault(f"rgb layer4 + {name}, 1:1", []).append(
                    correct(spatial[1] + said[name][1], labels[test])
                )
                losses = [loss((1 - w) * spatial[0] + w * said[name][0], labels[train]) for w in SHARES]
                w = SHARES[int(np.argmin(losses))]
                rows.setdefault(f"rgb layer4 + {name}, weighted", []).append(
                    correct((1 - w) * spatial[1] + w * said[name][1], labels[test])
                )
    for name, values in rows.items():
        print(f"{name:45} {100 * np.mean(values):5.1f} ± {100 * np.std(values):.1f}")


def splits(labels: np.ndarray, groups: np.ndarray, people: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if people:
        yield from LeaveOneGroupOut().split(labels, labels, groups)
    else:
        for seed in (0, 1):
            yield from StratifiedKFold(5, shuffle=True, random_state=seed).split(labels, labels)


def fit(x: np.ndarray, y: np.ndarray, groups: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the training videos, held out, and of the test videos, averaged over views.

    x (n, views, F): each view is a sample of its own in training.
    """
    z, z_test = principal(x, test)
    folds = list(StratifiedGroupKFold(4, shuffle=True, random_state=0).split(y, y, groups))
    held = {}
    for strength in STRENGTHS:
        held[strength] = np.zeros((len(y), y.max() + 1))
        for some, rest in folds:
            held[strength][rest] = answer(z[some], y[some], z[rest], strength)
    best = min(STRENGTHS, key=lambda strength: loss(held[strength], y))
    return held[best], answer(z, y, z_test, best)


def principal(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z-scores by the training videos, on the principal axes of these: the penalty is round, so nothing is lost."""
    flat = x.reshape(-1, x.shape[-1])
    mean, std = flat.mean(0), flat.std(0)
    std = (std + 1e-3 * flat.std()) * np.sqrt(len(std))
    axes = np.linalg.svd((flat - mean) / std, full_matrices=False)[2].T
    return (x - mean) / std @ axes, (test - mean) / std @ axes


def answer(x: np.ndarray, y: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    views = x.shape[1]
    head = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    head.fit(x.reshape(-1, x.shape[-1]), np.repeat(y, views))
    logs = np.log(head.predict_proba(test.reshape(-1, test.shape[-1])).clip(np.exp(-20)))
    return logs.reshape(len(test), views, -1).mean(1)


def correct(logs: np.ndarray, labels: np.ndarray) -> float:
    return float((logs.argmax(1) == labels).mean())


def loss(logs: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy of unnormalised log-probabilities."""
    return float(np.mean(np.log(np.exp(logs).sum(1)) - logs[np.arange(len(labels)), labels]))


if __name__ == "__main__":
    run_main(main)
