"""Compare the fast way with the plain probe: run.py's features and twenty simple lines, on the same folds.

  python run.py ../shared/data/hockey_fights --weights resnet50.pth     first: makes the features
  python benchmarks/small_data.py ../shared/data/hockey_fights --weights resnet50.pth

If videos' names tell groups (people, recordings), each group is left out in turn; otherwise 5 stratified
folds, several times. Strengths and fusion weights are chosen on the training videos alone.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import LeaveOneGroupOut, RepeatedStratifiedKFold
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commandline import ArgumentParser
from data.videos import import_cv2
from dataloader.lists import load_split
from dataloader.preparation import IMAGENET_MEAN, IMAGENET_STD
from engine.crossfit import fit_first_or_all, fit_linear
from fusion import learn_weights
from network import build_model
from saved.feature_file import Features, read_features, with_split
from utils import run_main

LAYER3 = 1024  # features of a ResNet-50's layer3, the first of two of RGB
# one head each, on the features of these inputs joined
STREAMS = {"plain probe": ["probe"], "spatial": ["rgb"], "motion": ["greydiff", "flow"],
           "greydiff alone": ["greydiff"], "flow alone": ["flow"]}  # fmt: skip


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="what run.py was given")
    parser.add_argument("--data", type=Path, metavar="DIR", help="as run.py's, which has its default")
    parser.add_argument("--weights", default="imagenet", help="of the plain probe's ResNet-50")
    parser.add_argument("--repeats", type=int, default=2, help="of the 5 folds, where there are no groups")
    args = parser.parse_args()
    data = args.data or Path("record", args.videos.resolve().name, "data")
    split, names = load_split(data / "lists", 1), ("rgb", "greydiff", "flow")
    files = {name: with_split(read_features(data / f"features/{name}.npz"), split) for name in names}
    one = files["rgb"]
    values = {name: file.values for name, file in files.items()} | {"probe": probe(args.weights, one)}
    rows: dict[str, list[float]] = {}
    for train, test in tqdm(list(splits(one, args.repeats)), desc="splits", leave=False):
        rest = (train, one.labels, one.groups, len(one.about["class_names"]), 5, 0)
        said, held_out = {}, {}
        for name, inputs in STREAMS.items():  # as heads.py fits it
            joined = np.concatenate([values[each] for each in inputs], 2)
            fit = fit_first_or_all(LAYER3, joined, *rest) if name == "spatial" else fit_linear(joined, *rest)
            said[name], held_out[name] = fit.logits[test].mean(1), fit.held_out.astype(np.float64)
        both = ("spatial", "motion")
        weights, _ = learn_weights([held_out[name] for name in both], one.labels[train])
        said["average of spatial and motion"] = sum(said[name] for name in both)
        said["by learnt weights"] = sum(weight * said[name] for weight, name in zip(weights, both, strict=True))
        for name, logits in said.items():
            rows.setdefault(name, []).append(100 * float((logits.argmax(1) == one.labels[test]).mean()))
    print(f"{len(one.labels)} videos, {len(rows['spatial'])} splits: top-1, %")
    for name, tops in rows.items():
        print(f"{name:30} {np.mean(tops):5.1f} ± {np.std(tops):.1f}")


@torch.inference_mode()
def probe(weights: str, one: Features) -> np.ndarray:
    """Return a ResNet-50's last features of 10 frames per video at 224 pixels, (V, 10, 2048) float32."""
    cv2 = import_cv2()
    start = time.process_time()
    network = build_model("resnet50", 3, 1, weights).eval()
    network.fc = nn.Identity()  # type: ignore[assignment]
    features = []
    for name in tqdm(one.videos, desc="plain probe", unit="video", leave=False):
        capture = cv2.VideoCapture(one.about["files"][name])
        frames = [frame for _, frame in iter(capture.read, (False, None))]
        chosen = [frames[at] for at in np.linspace(0, len(frames) - 1, 10).round().astype(int)]
        resized = [cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA) for frame in chosen]
        images = (np.stack(resized)[..., ::-1] / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
        features.append(network(torch.from_numpy(images).float().permute(0, 3, 1, 2)).numpy())
    print(f"plain probe: {(time.process_time() - start) / len(features):.2f} s of CPU a video")
    return np.stack(features)


def splits(one: Features, repeats: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training rows, test rows) for each split. The files' own subsets are ignored."""
    order = np.argsort(one.videos)  # by name: a split does not depend on the list that the features were made with
    if len(np.unique(one.groups)) < len(one.groups):
        yield from LeaveOneGroupOut().split(one.labels, one.labels, one.groups)
    else:
        folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=0)
        for train, test in folds.split(order, one.labels[order]):
            yield order[train], order[test]


if __name__ == "__main__":
    run_main(main)
