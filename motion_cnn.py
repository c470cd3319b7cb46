"""Train and evaluate the motion stream: a ResNet on stacks of optical flow, or of RGB differences.

  python motion_cnn.py                           train from ImageNet weights
  python motion_cnn.py --resume PATH             continue from a checkpoint
  python motion_cnn.py --resume PATH --evaluate  only evaluate, then stop
  python motion_cnn.py --features OUT.npz        only write features of all videos, for heads.py
  python run.py VIDEOS                           for up to 2,000 videos of your own: minutes, without a GPU
"""

from dataclasses import replace
from typing import Any

from common.commandline import bounded
from dataloader.clips import make_data
from dataloader.extracted import extraction_settings
from dataloader.frames import ReadFlow, ReadFrame, ReadSteps
from dataloader.layouts import index_frames
from dataloader.preparation import DIFFERENCES, default_preparation
from engine import options, results, resume
from engine.features import extract_features
from engine.runner import Run
from engine.training import Training, TrainingSettings, train_one_epoch
from network import build_model, rgb_normalisation
from utils import InputError, run_main, seed_everything, set_up_device

# Each recipe sets defaults; explicit flags override them.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {
        "batch_size": 64, "lr": 1e-2, "segments": 1, "consensus": "sum", "flow_mean": 0.0, "flow_std": 1.0,
        "crop": "squash", "flip": False,
    },  # the original's code; its README crops and flips: --crop random --flip --test-resize crop
    "tsn": {
        **options.TSN, "lr": 5e-3, "clip_grad": 20.0, "dropout": 0.7, "conv1_lr_factor": 5.0,
        "flow_mean": 0.5, "flow_std": 0.226,
        "epochs": 340, "milestones": [190 / 340, 300 / 340],  # as in tsn-pytorch and mmaction
    },
}  # fmt: skip
# For --input rgbdiff. Source: tsn-pytorch's README, the only one with such a recipe.
RECIPES["tsn rgbdiff"] = RECIPES["tsn"] | {
    "epochs": 180, "lr": 1e-3, "milestones": [80 / 180, 160 / 180], "segments": 7,
    "clip_grad": 40.0, "dropout": 0.8, "conv1_lr_factor": 1.0,
}  # fmt: skip


def main() -> int:
    # flags
    parser = options.stream_parser("motion", __doc__)
    add = parser.add_argument_group("motion").add_argument
    add("--input", choices=("flow", "rgbdiff", "greydiff"), default="flow",
        help="rgbdiff: differences of consecutive RGB frames (TSN 3.2), which need no optical flow; greydiff: of grey "
             "frames; three of them form a picture, which ImageNet's first convolution takes unchanged")
    add("--flow-dir", metavar="DIR", default="data/flow", help="flow, in any layout of docs/formats.md")
    add("--rgb-dir", metavar="DIR", default="data/rgb", help="frames for differences, every one of them")
    add("--stack-length", type=bounded(int, 1), default=None,
        help="flow pairs or differences per clip (default: 10 of flow, 5 of rgbdiff, 3 of greydiff)")
    add("--flow-mean", type=float, help="subtracted from x/255; .5 is no motion")
    add("--flow-std", type=bounded(float, 1e-6), help="then divided by this")
    add("--flow-picture", type=bounded(float, 1e-6), metavar="PIXELS",
        help="instead of a stack, one flow image, as a picture of x, y and speed that is white at this many pixels. "
             "ImageNet's first convolution takes it unchanged")
    add("--conv1-lr-factor", type=bounded(float, 0), default=TrainingSettings.conv1_lr_factor,
        help="times --lr, for the first convolution")
    add("--flow-order", choices=("original", "older", "oldest"), default="original",
        help="channel order of the original repo's checkpoint: [f1..f9, f0], [f5..f9, f0..f4], [f0..f9]")
    args = options.parse(parser, RECIPES)
    device = set_up_device(args.device)
    checkpoint = resume.open_checkpoint(args, *((args.input,) if "input" in args.given else ("flow", *DIFFERENCES)))
    seed_everything(args.seed, args.deterministic)

    # data
    length = args.stack_length or {"flow": 10, "rgbdiff": 5, "greydiff": 3}[args.input]
    flow = args.input == "flow"
    index = index_frames(args.flow_dir, "flow") if flow else index_frames(args.rgb_dir, "rgb")
    read: ReadSteps = ReadFlow(index.root) if flow else ReadFrame(index.root)
    fresh = default_preparation(args.input, args.size, args.test_resize, length)
    fresh = fresh.with_extraction(extraction_settings(index.root))
    if flow and args.flow_mean is not None and args.flow_std is not None:
        fresh = replace(fresh, mean=(args.flow_mean,), std=(args.flow_std,))
    if flow and args.flow_picture:
        fresh = replace(fresh, picture=args.flow_picture, stack_length=1, **rgb_normalisation(args.arch))
    if args.input in DIFFERENCES and fresh.sampling_rate not in (None, 1):
        found = f"{index.root} holds every {fresh.sampling_rate}th frame, and differences need all"
        raise InputError(f"{found}: extract them with data/extract_rgb.py --sampling-rate 1 to another folder, and "
                         "name that with --rgb-dir")  # fmt: skip
    preparation = resume.choose_preparation(args, checkpoint, fresh)
    data = make_data(index, read, preparation, device, **options.data_settings(args))
    checkpoint = resume.unless_tested(args, checkpoint, data)
    classes = data.split.class_names

    # model
    weights = args.weights if checkpoint is None else "none"
    model = build_model(args.arch, preparation.channels, len(classes), weights, args.dropout, args.fc_std,
                        args.flow_order, preparation.size)  # fmt: skip

    if args.features:
        return extract_features(args, model, checkpoint, data, preparation, device)

    # optimizer, and the training state
    training = Training(model, preparation, device, options.training_settings(args))
    if checkpoint is not None:
        resume.go_on(training, checkpoint, classes, trains=data.train is not None)

    # one evaluation, or the epoch loop
    run = Run("motion", "opf", args, data)
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
