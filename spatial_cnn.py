"""Train and evaluate the spatial stream: a ResNet on single RGB frames.

  python spatial_cnn.py                           train from ImageNet weights
  python spatial_cnn.py --resume PATH             continue from a checkpoint
  python spatial_cnn.py --resume PATH --evaluate  only evaluate, then stop
  python spatial_cnn.py --features OUT.npz        only write features of all videos, for heads.py
  python run.py VIDEOS                            for up to 2,000 videos of your own: minutes, without a GPU
"""

from dataclasses import replace
from typing import Any

from dataloader.clips import make_data
from dataloader.extracted import extraction_settings
from dataloader.frames import ReadFrame
from dataloader.layouts import index_frames
from dataloader.preparation import default_preparation
from engine import options, results, resume
from engine.features import extract_features
from engine.runner import Run
from engine.training import Training, train_one_epoch
from network import build_model, rgb_normalisation
from utils import run_main, seed_everything, set_up_device

# Each recipe sets defaults; explicit flags override them.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {"batch_size": 25, "lr": 5e-4, "consensus": "sum"},  # the original's
    "tsn": {
        **options.TSN, "lr": 1e-3, "clip_grad": 40.0, "dropout": 0.8,
        "epochs": 80, "milestones": [30 / 80, 60 / 80],  # as in tsn-pytorch and mmaction
    },
}  # fmt: skip


def main() -> int:
    # flags
    parser = options.stream_parser("spatial", __doc__)
    add = parser.add_argument_group("spatial").add_argument
    add("--rgb-dir", metavar="DIR", default="data/rgb", help="frames, in any layout of docs/formats.md")
    args = options.parse(parser, RECIPES)
    device = set_up_device(args.device)
    checkpoint = resume.open_checkpoint(args, "rgb")
    seed_everything(args.seed, args.deterministic)

    # data
    index = index_frames(args.rgb_dir, "rgb")
    fresh = default_preparation("rgb", args.size, args.test_resize).with_extraction(extraction_settings(index.root))
    fresh = replace(fresh, **rgb_normalisation(args.arch))
    preparation = resume.choose_preparation(args, checkpoint, fresh)
    data = make_data(index, ReadFrame(index.root), preparation, device, **options.data_settings(args))
    checkpoint = resume.unless_tested(args, checkpoint, data)
    classes = data.split.class_names

    # model
    weights = args.weights if checkpoint is None else "none"
    model = build_model(args.arch, preparation.channels, len(classes), weights, args.dropout, args.fc_std,
                        size=preparation.size)  # fmt: skip

    if args.features:
        return extract_features(args, model, checkpoint, data, preparation, device)

    # optimizer, and the training state
    training = Training(model, preparation, device, options.training_settings(args))
    if checkpoint is not None:
        resume.go_on(training, checkpoint, classes, trains=data.train is not None)

    # one evaluation, or the epoch loop
    run = Run("spatial", "rgb", args, data)
    if data.train is None:  # --evaluate
        return results.evaluate(run, training)
    training.distribute()
    with run.training(training):  # Ctrl-C and SIGTERM end the block cleanly
        while training.epoch < args.epochs:
            training.set_lr()
            row = train_one_epoch(training, data.train, run.after_batch)
            result, is_best = None, False
            if run.tests_after(training):
                result = results.validate(run, training)
                is_best = training.take_test(result.accuracy["top1"], result.loss)
            results.write_epoch(run, training, row, result, is_best)
            training.next_epoch()
            run.save(training, is_best)
        results.report_best(run, training)
    return run.exit_code


if __name__ == "__main__":
    run_main(main, "use a smaller --batch-size or --size, or --accumulate 4")
