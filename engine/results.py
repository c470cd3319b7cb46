"""The tests of a run, and what it writes about them: predictions, records, TensorBoard's curves."""

import functools

import torch.distributed as dist

from engine.evaluation import TestResult, test
from engine.owner import owned
from engine.runner import BEST, CHECKPOINT, Run, Stopped
from engine.training import Training
from saved.checkpoint_reader import read_checkpoint
from saved.checkpoints import weights_hash
from saved.predictions import write_predictions
from saved.records import provenance, write_record
from utils import check_output, processes


def validate(run: Run, training: Training) -> TestResult:
    """Evaluate on the videos that select the model. The training is saved first, in case this fails."""
    # All processes use rank 0's batch-norm statistics, as DistributedDataParallel does in training.
    if processes() > 1:
        for buffer in training.model.buffers():
            dist.broadcast(buffer, 0)
    run.save(training, False)
    return test(training, run.data.select, lambda: run.stop_if_asked(training))


def write_epoch(run: Run, training: Training, row: dict[str, float], result: TestResult | None, is_best: bool) -> None:
    """Write an epoch's records and predictions. They become valid when its checkpoint is saved."""
    line = f"epoch {training.epoch}: loss {row['Loss']:.4f}, top-1 {row['Prec@1']:.2f} %, lr {row['lr']:.3g}"
    _record(run, "train", row)
    if result is not None:
        subset = "val" if run.args.val_groups else "test"
        if is_best or subset == "test":  # predictions on validation videos remain model_best's
            # After the next epoch, only model_best still holds the best epoch's network.
            _write(run, training, result, subset, training.epoch, BEST if is_best else CHECKPOINT)
        scores = {"Loss": result.loss, "Prec@1": result.accuracy["top1"], "Prec@5": result.accuracy["top5"]}
        times = {"Batch Time": result.batch_time, "Data Time": result.data_time}
        _record(run, "test", {**row, **times, **scores})
        line += f" | {subset}: {result}{' (best)' if is_best else ''}"
    run.best_written = is_best and not run.args.val_groups
    run.say(line)


def report_best(run: Run, training: Training) -> None:
    """Evaluate the best epoch's network unless it is the last, so that its predictions stay on disk."""
    if run.best_written:
        return
    if processes() > 1:
        dist.barrier()  # wait until rank 0 has written it
    path = run.output / BEST
    best = read_checkpoint(path) if path.is_file() else None
    if best is None or best.best_prec1 != training.best_prec1:  # left in this folder by another training
        run.say(f"the best epoch was before those in {run.output}: the predictions are the last epoch's")
        return
    training.model.load_state_dict(best.state_dict)
    result = _final_test(run, training, best.epoch, path.name)
    run.say(f"model_best, of epoch {best.epoch} | test: {result}")


def evaluate(run: Run, training: Training) -> int:
    """Evaluate on the test videos, write both prediction files and report; return the exit code."""
    name = run.args.resume.name
    with owned(run.output), run.signals():
        if run.leads:
            check_output(run.output, 0)
        run.say(run.headline(training))
        try:
            result = _final_test(run, training, training.epoch - 1, name)
        except Stopped:
            run.say("stopped; the old predictions are untouched")
            return run.exit_code
    epoch = f", of epoch {training.epoch - 1}" if training.epoch > 0 else ""
    run.say(f"test of {name}{epoch}: {result}")
    return 0


def _final_test(run: Run, training: Training, epoch: int, name: str) -> TestResult:
    check_stop = functools.partial(run.stop_if_asked, training, save=False)
    result = test(training, run.data.test, check_stop)
    _write(run, training, result, "test", epoch, name)
    if run.data.train is None and run.data.select is not run.data.test:
        _write(run, training, test(training, run.data.select, check_stop), "val", epoch, name)
    return result


def _record(run: Run, phase: str, row: dict[str, float]) -> None:
    if run.leads:
        write_record(run.output / f"{run.prefix}_{phase}.csv", row)
    if run.board:
        for name, value in row.items():
            run.board.add_scalar(f"{phase}/{name}", value, row["Epoch"])
        run.board.flush()


def _write(run: Run, training: Training, result: TestResult, subset: str, epoch: int, name: str) -> None:
    """Write predictions: those of test videos to the output folder, of validation videos to its val/."""
    if not run.leads:
        return
    dataset = (run.data.test if subset == "test" else run.data.select).dataset
    about = {
        **run.data.about(), "subset": subset, "labels": result.labels,
        "protocol": {**dataset.sampling.about(), **training.preparation.as_dict()},
        "checkpoint": {"name": name, "epoch": epoch, "weights_sha256": weights_hash(training.model.state_dict())},
        "chosen_by": None if run.data.train is None else run.chosen_by,
        "made": provenance(run.flags), "frames": run.data.frames(dataset.sources),
    }  # fmt: skip
    folder = run.output if subset == "test" else run.output / "val"
    write_predictions(folder, run.stream, result.frame_logits, about)
