"""From the flags to values: recipes, what a resume takes from its checkpoint, and what given flags win over."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, TINY

import motion_cnn
import spatial_cnn
from dataloader.preparation import default_preparation
from engine import options, resume
from engine.training import Training, TrainingSettings
from network import build_model
from saved.checkpoint_reader import Checkpoint
from saved.checkpoints import save_tensors, write_checkpoint
from utils import InputError

CPU = torch.device("cpu")
ARCH = "timm:test_resnet"


def flags(*argv, stream="spatial", **recipes):
    script = {"spatial": spatial_cnn, "motion": motion_cnn}[stream]
    parser = options.stream_parser(stream, "")
    if stream == "motion":
        for name in ("--flow-mean", "--flow-std", "--conv1-lr-factor"):
            parser.add_argument(name, type=float, default=1.0)
        parser.add_argument("--input", default="flow")
        parser.add_argument("--stack-length", type=int)
    return options.parse(parser, recipes or script.RECIPES, [str(word) for word in argv])


FROZEN = json.loads((ROOT / "tests/frozen_flags.json").read_text())


def values_in(script, argv, monkeypatch):
    """What a script has of its flags when its checkpoint, if any, is read; as JSON has it."""

    class Read(Exception):
        pass

    def stop(args, *modalities):
        read(args, *modalities)
        raise Read(args)

    read = resume.open_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(resume, "open_checkpoint", stop)
        patch.setattr(sys, "argv", ["x.py", *map(str, argv)])
        with pytest.raises(Read) as found:
            script.main()
    own = ("given", "of_recipe", "auto")
    values = {name: value for name, value in vars(found.value.args[0]).items() if name not in own}
    return json.loads(json.dumps(values, default=str))


# what a resume does not take from its checkpoint
OWN = {"resume", "evaluate", "output", "features", "pooling", "rgb_dir", "flow_dir", "ucf_list",
       "workers", "device", "compile", "save_every_minutes", "allow_missing", "weights", "flow_order",
       "tensorboard"}  # fmt: skip


@pytest.mark.parametrize("words", FROZEN)
def test_every_flag_and_what_a_resume_takes_of_them(words, tmp_path, monkeypatch):
    """Frozen: all flags with each recipe's values. A resume has its checkpoint's, but for OWN and what is given."""
    stream, *argv = words.split()
    script = {"spatial": spatial_cnn, "motion": motion_cnn}[stream]
    wanted = {**FROZEN[stream], **FROZEN[words], "resume": None, "device": "cpu"}
    found = values_in(script, [*argv, "--device", "cpu"], monkeypatch)
    assert found == wanted

    kind = wanted.get("input", "rgb")
    preparation = default_preparation(kind, 32, "squash", {"rgb": 1, "flow": 10, "rgbdiff": 5}[kind])
    model = build_model(ARCH, preparation.channels, 4, size=32)
    saved = {**found, "seed": 7, "lr": 0.3, "output": "elsewhere", "workers": 9}
    path = tmp_path / "checkpoint.pth.tar"
    content = {"epoch": 0, "batch": 0, "best_prec1": 0.0, "state_dict": model.state_dict()}
    write_checkpoint(content, path, arch=ARCH, class_names="abcd", dataset="x", split="1",
                     preparation=preparation.as_dict(), args=saved)  # fmt: skip
    again = values_in(script, ["--resume", path, "--epochs", 3, "--test-views", 2], monkeypatch)
    given = {"epochs": 3, "test_views": 2, "resume": str(path), "arch": ARCH}
    plain = {**FROZEN[stream], "device": "auto"}
    assert again == {**saved, **{name: plain[name] for name in OWN & plain.keys()}, **given}


def test_the_group_rule_stands_in_for_lists_that_nobody_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert options.data_settings(flags())["ucf_list"] is None
    assert options.data_settings(flags("--ucf-list", "none"))["ucf_list"] is None
    named = options.data_settings(flags("--ucf-list", tmp_path / "absent"))
    assert named["ucf_list"] == tmp_path / "absent"  # whose absence is then told


def test_schedules_are_those_of_torch():
    """torch.optim.lr_scheduler's MultiStepLR and CosineAnnealingLR give the same rates, epoch by epoch."""
    schedules = torch.optim.lr_scheduler

    def of_torch(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        schedule, found = make(optimizer), []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    cosine = TrainingSettings(batch_size=25, epochs=10, lr=0.5, schedule="cosine", amp="off")
    step = TrainingSettings(batch_size=25, epochs=10, lr=0.5, schedule="step", milestones=(0.4, 0.8), amp="off")
    rates = [[one.lr * one.lr_factor(epoch) for epoch in range(10)] for one in (cosine, step)]
    np.testing.assert_allclose(rates[0], of_torch(lambda o: schedules.CosineAnnealingLR(o, 10)), rtol=1e-12)
    np.testing.assert_allclose(rates[1], of_torch(lambda o: schedules.MultiStepLR(o, [4, 8])), rtol=1e-12)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint after one of ten epochs of cosine, whose optimizer has momentum."""

    def save(**given):
        usual = {"batch_size": 25, "epochs": 10, "lr": 0.5, "schedule": "cosine", "amp": "off"}
        settings = TrainingSettings(**usual | given)
        preparation = default_preparation("rgb", 32, "squash")
        training = Training(build_model(ARCH, 3, 4, size=32), preparation, CPU, settings)
        training.model(torch.rand(2, 3, 32, 32).repeat(1, 1, 2, 2)).sum().backward()
        training.set_lr()
        training.optimizer.step()
        training.next_epoch()
        write_checkpoint(
            training.state_dict(), tmp_path / "checkpoint.pth.tar", arch=ARCH, class_names="abcd", dataset="x",
            split="1", preparation=preparation.as_dict(), args={**vars(settings), "recipe": "baseline"},
        )  # fmt: skip
        return tmp_path / "checkpoint.pth.tar"

    return save


def go_on(path, *argv, stream="spatial"):
    args = flags("--resume", path, *argv, stream=stream)
    checkpoint = resume.open_checkpoint(args, "rgb")
    training = Training(build_model(ARCH, 3, 4, size=32), default_preparation("rgb", 32, "squash"), CPU,
                        options.training_settings(args))  # fmt: skip
    resume.go_on(training, checkpoint, list("abcd"))
    training.set_lr()
    return args, training


def test_flags_given_on_a_resume_win(saved):
    path = saved(schedule="plateau", patience=3)
    args, training = go_on(path, "--weight-decay", 0.25, "--clip-grad", 2)
    for group, decay in zip(training.optimizer.param_groups, (0.25, 0.25, 0), strict=True):
        assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, decay, 0.5)
    assert training.settings.clip_grad == 2 and args.weight_decay == 0.25  # what its next checkpoint records
    assert training.optimizer.state  # and the momentum that there was goes on
    training = go_on(path)[1]
    assert training.plateau.patience == 3 and training.optimizer.param_groups[0]["momentum"] == 0.9


def test_a_rate_that_plateau_reduced_stays_reduced_until_another_is_given(saved):
    path = saved(schedule="plateau")
    content = torch.load(path, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        group["lr"] /= 100
    save_tensors(content, path)
    assert go_on(path)[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    assert go_on(path, "--lr", 0.5)[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.005)  # the same command again
    assert go_on(path, "--lr", 0.3)[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    factor = go_on(path, "--conv1-lr-factor", 5, stream="motion")[1].optimizer.param_groups
    assert [group["lr"] for group in factor] == pytest.approx([0.025, 0.005, 0.005])


def test_another_recipe_counts_as_given_and_its_own_does_not(saved):
    path = saved(schedule="plateau", weight_decay=0.125)
    assert go_on(path, "--recipe", "baseline")[1].settings.weight_decay == 0.125
    args, training = go_on(path, "--recipe", "tsn")
    assert training.settings.schedule == "step" and training.settings.epochs == 80 and args.recipe == "tsn"
    assert training.settings.weight_decay == 5e-4 and training.optimizer.param_groups[1]["weight_decay"] == 5e-4


def test_an_epoch_begun_is_not_cut_anew(saved):
    path = saved(batch_size=4)
    content = torch.load(path, weights_only=True)
    save_tensors({**content, "batch": 2}, path)
    assert go_on(path)[1].batch == 2
    with pytest.raises(InputError, match="within an epoch of --batch-size 4: finish it before you train with 8"):
        go_on(path, "--batch-size", 8)


def test_flow_is_normalised_as_given_and_keeps_its_stack():
    old = default_preparation("flow", 64, "squash", 10)
    checkpoint = Checkpoint("m.pth.tar", "two-stream", {}, "resnet18", 2, 20, old.as_dict(), {}, 0, 0.0, None, {})
    args = flags("--flow-mean", 0, "--flow-std", 1, "--size", 96, stream="motion")
    found = resume.choose_preparation(args, checkpoint, old)
    assert (found.mean, found.std, found.size, found.stack_length) == ((0.0,), (1.0,), 96, 10)
    assert resume.choose_preparation(flags(stream="motion"), checkpoint, old) == old
    with pytest.raises(InputError, match="--stack-length 5: m.pth.tar is a network for 10"):
        resume.choose_preparation(flags("--stack-length", 5, stream="motion"), checkpoint, old)


def test_weights_of_no_numbers_are_no_result(tiny, run, tmp_path):
    """Logits of infinity or NaN rank every class alike: they were 100 % right, and stayed the best for ever."""
    model = build_model("resnet18", 3, 101)
    torch.nn.init.constant_(model.fc.weight, 3e38)  # finite, as a file must be, but no logit of it is
    torch.save(model.state_dict(), tmp_path / "broken.pth")
    arguments = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *SMALL, "--output", tmp_path / "out")
    said = run(*arguments, "--resume", tmp_path / "broken.pth", "--evaluate", code=2).stderr
    assert said.count("\n") == 1 and "_g01_c01 are not finite" in said and "diverged" in said
    assert not (tmp_path / "out/predictions.json").exists()


def test_another_projects_rate_is_what_its_plateau_had_come_to_and_no_schedules(tmp_path):
    state = build_model("resnet18", 3, 4).state_dict()
    group = {"lr": 1e-5, "momentum": 0.9, "weight_decay": 5e-4, "params": []}
    state = {f"module.base_model.{name}".replace("base_model.fc", "new_fc"): one for name, one in state.items()}
    content = {"epoch": 45, "arch": "resnet18", "state_dict": state, "best_prec1": 50.0,
               "optimizer": {"state": {}, "param_groups": [group]}}  # fmt: skip
    torch.save(content, tmp_path / "tsn.pth.tar")
    for words, rate in (((), 1e-5), (("--recipe", "tsn"), 1e-3)):
        args = flags("--resume", tmp_path / "tsn.pth.tar", *words)
        resume.open_checkpoint(args, "rgb")
        assert args.lr == pytest.approx(rate)


def test_no_failure_of_a_test_costs_an_epoch(tiny, run, tmp_path):
    """A test image that can't be read: the epoch before it is in the checkpoint, and is not trained again."""
    import shutil

    shutil.copytree(tiny / "rgb", tmp_path / "rgb")
    image = sorted((tmp_path / "rgb").glob("v_*_g01_*"))[0] / "frame000001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    arguments = ("spatial_cnn.py", "--rgb-dir", tmp_path / "rgb", *TINY, "--output", tmp_path / "out", "--epochs", 1)
    run(*arguments, code=2)
    batches = torch.load(tmp_path / "out/checkpoint.pth.tar", weights_only=True)["batch"]
    assert batches > 0
    image.write_bytes(whole)
    run(*arguments, "--resume")
    assert json.loads((tmp_path / "out/predictions.json").read_text())["checkpoint"]["epoch"] == 0
