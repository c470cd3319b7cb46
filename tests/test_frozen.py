"""Training from a stage on: the same steps from what is computed once, frozen weights stay, and kills cost nothing."""

import copy
import json
import signal

import numpy as np
import pytest
import torch
from conftest import SMALL, write_images

from dataloader.clips import DataSettings, make_data
from dataloader.frames import ReadFrame, index_frames
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling as Sampling
from dataloader.sampling import TrainSampling
from engine.frozen import FrozenLoader, start_from_linear_head, training_loader
from engine.training import Training, TrainingSettings, train_step
from network import build_model

CPU = torch.device("cpu")


@pytest.fixture
def make(tiny):
    """make(settings of a training) -> (training, its plain loader), the same each time."""

    def make(workers=0, **settings):
        index, preparation = index_frames(tiny / "rgb", "rgb"), default_preparation("rgb", 64, "squash")
        wanted = DataSettings(None, "1", Sampling(2), TrainSampling(2, "multiscale"), 4, workers=workers, seed=5)
        data = make_data(wanted, index, ReadFrame(index.root), preparation, CPU)
        torch.manual_seed(0)
        model = build_model("resnet18", 3, len(data.split.class_names))
        how = TrainingSettings(batch_size=25, lr=0.01, seed=5, amp="off", **settings)
        training = Training(model, preparation, CPU, how)
        return training, data.train

    return make


def weights(training):
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def steps(training, loader, epochs):
    for epoch in epochs:
        training.epoch = epoch
        training.set_train_mode()
        for number, batch in enumerate(loader.epoch(training.epoch)):
            training.batch = number
            train_step(training, batch)
    return weights(training)


@pytest.mark.parametrize("train_from", ["layer3", "fc"])
def test_steps_are_those_of_the_whole_network(make, train_from):
    """Epochs 0 and 1 of two versions are the plain loader's; epoch 2 shows the clips of epoch 0 again."""
    training, loader = make(train_from=train_from, accumulate=2)
    training.distribute()
    before = weights(training)
    cached = FrozenLoader(loader, training, 2, 1e9)
    after = steps(training, cached, range(3))
    assert len(cached.kept) == 2 * len(loader.dataset) == 12

    plain, loader = make(train_from=train_from, accumulate=2)
    plain.distribute()
    plain.stepped = plain.model  # every layer, on the clips themselves

    class Repeated:
        def epoch(self, epoch):
            shown = {batch.names[0]: batch for batch in loader.one_by_one([(epoch % 2, i) for i in range(6)])}
            for batch in loader.epoch(epoch):
                own = [shown[name] for name in batch.names]
                images = torch.cat([one.images for one in own])
                offsets = np.cumsum([0] + [len(one.images) for one in own])
                clips = torch.cat([one.clips + int(at) for one, at in zip(own, offsets, strict=False)])
                yield batch._replace(images=images, clips=clips, flip=torch.cat([one.flip for one in own]))

    def frozen_norms():
        plain.model.eval()  # all batch norms are; there is no dropout here

    plain.set_train_mode = frozen_norms
    expected = steps(plain, Repeated(), range(3))
    stages = ["layer3", "layer4", "fc"]
    trained = tuple(stages[stages.index(train_from):])
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        convolution = "conv" in name or name.endswith("downsample.0.weight")
        moves = name.startswith(trained) and (name.startswith("fc") or convolution)
        assert torch.equal(value, before[name]) != moves, name  # batch norms stay, statistics and weights


def test_what_does_not_fit_is_computed_each_time_to_the_same_bits(make, capsys):
    results = []
    for memory in (1e9, 300_000, 0):  # a version of a video: 2 clips x 256 x 4 x 4 x 4 bytes
        training, loader = make(train_from="layer4")
        training.distribute()
        cached = FrozenLoader(loader, training, 2, memory)
        results.append(steps(training, cached, range(3)))
        assert len(cached.kept) == min(12, memory // 32_768) and cached.used <= memory
        said = capsys.readouterr().out
        assert ("are computed in every epoch" in said) == (memory < 1e9)
        assert memory != 300_000 or "output for 9 of 12 versions" in said
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_the_last_layer_starts_as_a_linear_head(make):
    plain, loader = make()
    assert training_loader(loader, plain) is loader  # nothing is frozen
    training, loader = make(train_from="layer4")
    training.distribute()
    cached = FrozenLoader(loader, training, 3)
    before = weights(training)
    seen = []
    said = start_from_linear_head(training, cached, 101, lambda training: seen.append(1))
    assert "6 videos x 6 clips" in said and "2 folds by group" in said and len(seen) == 18
    after = weights(training)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    # by itself: the network on the videos' clips says what they are
    network = copy.deepcopy(training.model).eval()
    rest = cached.frozen
    for video in cached.videos([(0, i) for i in range(6)]):
        x = video.activations
        logits = network.fc(network.avgpool(network.layer4(x)).flatten(1)).mean(0)
        assert logits.argmax() == video.label
    assert not any(parameter.requires_grad for parameter in rest.parameters())


# --- as a user runs it ---------------------------------------------------------------------------------


RECIPE = (*SMALL, "--recipe", "small", "--batch-size", 2, "--epochs", 3, "--lr", 0.01, "--dropout", 0.5,
          "--accumulate", 2, "--seed", 3)  # fmt: skip


@pytest.fixture(scope="module")
def untouched(tiny, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("untouched")
    return out, run("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *RECIPE, "--output", out).stdout


def test_a_small_training_tests_once(untouched):
    out, said = untouched
    assert "starts from a linear head on 6 videos x 12 clips" in said and "nothing is chosen by the test set" in said
    assert said.count("| test:") == 1
    assert json.loads((out / "predictions.json").read_text())["chosen_by"] == "last"


def test_a_stopped_small_training_goes_on_to_the_same_bits(untouched, tiny, run, strike, tmp_path):
    flags = ("spatial_cnn.py", "--rgb-dir", tiny / "rgb", *RECIPE, "--output", tmp_path)
    stopped = strike("in a batch", 5, signal.SIGTERM, *flags)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    run(*flags, "--resume")
    ends = [torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (untouched[0], tmp_path)]
    assert all(torch.equal(value, ends[1]["state_dict"][name]) for name, value in ends[0]["state_dict"].items())
    momentum = [[one["momentum_buffer"] for one in end["optimizer"]["state"].values()] for end in ends]
    assert len(momentum[0]) > 2 and all(torch.equal(a, b) for a, b in zip(*momentum, strict=True))
    for path in untouched[0].glob("*.pickle"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_held_out_groups_and_the_motion_stream(tiny, run, tmp_path):
    common = (*SMALL, "--recipe", "small", "--epochs", 2, "--output", tmp_path)
    flow = ("motion_cnn.py", "--flow-dir", tiny / "flow", *common)
    assert "--no-linear-start" in run(*flow, "--val-groups", 1, code=2).stderr  # one video is left of each class
    said = run(*flow, "--val-groups", 1, "--no-linear-start", "--eval-every", 1).stdout
    assert said.count("| val:") == 2
    state = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    assert state["conv1.weight"].shape[1] == 3  # a flow picture


def test_the_linear_head_stays_where_fine_tuning_makes_it_no_better(run, tmp_path):
    for name in ("Archery", "Hammering"):
        for group in (1, 8, 9, 22, 23):
            folder = tmp_path / "rgb" / f"v_{name}_g{group:02d}_c01"
            write_images(folder, "frame", 5, (72, 64), "RGB", group + 50 * (name == "Archery"))
    flags = ("spatial_cnn.py", "--rgb-dir", tmp_path / "rgb", *SMALL, "--recipe", "small", "--output", tmp_path / "out")
    # steps of length zero leave the head what it is, and no epoch can be better
    said = run(*flags, "--val-groups", 1, "--epochs", 1, "--lr", 1e-20, "--weight-decay", 0).stdout
    assert said.count("| val:") == 2 and "model_best, the linear head, which no epoch made better | test:" in said
    assert json.loads((tmp_path / "out/predictions.json").read_text())["checkpoint"]["epoch"] == -1
