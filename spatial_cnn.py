"""Train and test the spatial stream: a ResNet on single RGB frames.

  python spatial_cnn.py                           train from ImageNet weights
  python spatial_cnn.py --resume PATH             go on from a checkpoint
  python spatial_cnn.py --resume PATH --evaluate  only test, then stop
  python spatial_cnn.py --features OUT.npz        only features of all videos, for heads.py
"""

from __future__ import annotations

from typing import Any

from dataloader.layouts import index_frames
from dataloader.loaders import extraction_settings, make_data
from dataloader.spatial_dataloader import ReadFrame, spatial_sources
from dataloader.transforms import default_preparation
from engine import options
from engine.features import extract_features
from engine.run import Run
from engine.state import Training, choose_preparation, open_checkpoint
from network import build_model
from utils import run_main, seed_everything, set_up_device

# Each recipe sets defaults; any flag given beside --recipe wins.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {"batch_size": 25, "lr": 5e-4},  # the original's
    "tsn": {
        "epochs": 80, "batch_size": 128, "lr": 1e-3, "schedule": "step", "milestones": [30 / 80, 60 / 80],
        "weight_decay": 5e-4, "clip_grad": 40.0, "dropout": 0.8, "partial_bn": True,
        "crop": "multiscale", "test_samples": 25, "test_views": 10, "test_resize": "center",
    },
}  # fmt: skip


def main() -> int:
    # flags
    parser = options.stream_parser("spatial", __doc__)
    group = parser.add_argument_group("spatial")
    group.add_argument("--rgb-dir", metavar="DIR", default="data/rgb", help="RGB frames, in any layout of the README")
    args = options.parse(parser, RECIPES)
    device = set_up_device(args.device)
    checkpoint = open_checkpoint(args, "rgb")
    seed_everything(args.seed, args.deterministic)

    # data
    index = index_frames(args.rgb_dir, "rgb")
    fresh = default_preparation("rgb", args.size, args.test_resize).with_extraction(extraction_settings(index.root))
    preparation = choose_preparation(checkpoint, fresh, args)
    data = make_data(args, index, ReadFrame(index.root), spatial_sources, preparation, device)

    # model
    weights = args.weights if checkpoint is None else "none"
    model = build_model(args.arch, preparation.channels, len(data.split.class_names), weights, args.dropout)

    if args.features and not args.evaluate:
        return extract_features(args, model, checkpoint, data, preparation, device)

    # optimizer
    training = Training.start(model, data.split.class_names, args, device, checkpoint)

    # loop over epochs, or one test
    run = Run("spatial", "rgb", args, data, preparation, device)
    return run.evaluate(training) if args.evaluate else run.fit(training)


if __name__ == "__main__":
    run_main(main)
