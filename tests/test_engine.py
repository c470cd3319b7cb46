"""A step of training against softmax regression's formulas, and what an epoch and a test make of their batches."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import network
from dataloader.clips import Batch, ClipDataset, clips_of
from dataloader.frames import Source
from dataloader.lists import Video
from dataloader.preparation import Preparation, to_input
from dataloader.sampling import TestSampling as Sampling
from engine import evaluation
from engine import training as engine
from engine.training import Training, TrainingSettings
from utils import InputError, processes

CPU = torch.device("cpu")
PIXELS = Preparation(size=4, mean=(0.0,) * 3, std=(1.0,) * 3)  # an input is a pixel / 255
CLASSES = 7


def make_batch(videos=5, clips=3, size=4, seed=0):
    """Random pictures, one a clip."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (videos * clips, 3, size, size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, CLASSES, (videos,), generator=rng)
    rows, flip = torch.arange(videos * clips)[:, None], torch.zeros(videos * clips, dtype=torch.bool)
    return Batch([f"{seed}.{i}" for i in range(videos)], labels, images, rows, flip, 1 / videos)


def share(batch, low, high):
    """The batch of a process that takes these of its videos."""
    clips = len(batch.clips) // len(batch.names)
    return batch._replace(
        names=batch.names[low:high], labels=batch.labels[low:high], clips=batch.clips[low * clips : high * clips],
        flip=batch.flip[low * clips : high * clips], weight=processes() * batch.weight,
    )  # fmt: skip


class Batches:
    """A loader of ready batches; `padding` counts nowhere."""

    def __init__(self, *batches, sampling=None, padding=()):
        self.batches, self.batch_size = [*batches, *padding], len(batches[0].names)
        labelled = [pair for batch in batches for pair in zip(batch.names, batch.labels.tolist(), strict=True)]
        sources = [Source(Video(name, label, name), None, 1, name) for name, label in sorted(labelled)]
        self.dataset = ClipDataset(sources, None, PIXELS, sampling)

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, first_batch=0):
        return iter(self.batches[first_batch:])


def regression(dropout=0.0):
    """Softmax regression on a picture's mean colour."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(3, CLASSES))
    model.first_weights = ()
    return model


def make_training(model, lr=1.0, **settings):
    """A training without momentum, whose first parameter's rate is ten times lr."""
    plain = {"batch_size": 25, "lr": lr, "momentum": 0.0, "amp": "off"}
    training = Training(model, PIXELS, CPU, TrainingSettings(**plain | settings))
    groups = [{"params": list(model.parameters())[:1], "lr": 10 * lr}, {"params": list(model.parameters())[1:]}]
    training.optimizer = torch.optim.SGD(groups, lr=lr)
    return training


def step(batch, training=None, **settings):
    """What one step changes in regression()'s (weight, bias), and the loss that it returns."""
    training = training or make_training(regression(), **settings)
    before = copy.deepcopy(training.model[3])
    loss = engine.train_step(training, batch)
    after = training.model[3]
    return (after.weight - before.weight).detach(), (after.bias - before.bias).detach(), loss


def by_hand(batch):
    """(losses of the videos, gradients of weight and bias for their sum, ranks of the true class)."""
    linear = regression()[3].requires_grad_(False)
    colours = batch.images[batch.clips[:, 0]].double().mean((2, 3)) / 255
    colours = torch.stack([part.mean(0) for part in colours.chunk(len(batch.names))])  # linear: so is the logits' mean
    logits = colours @ linear.weight.double().T + linear.bias.double()
    wanted = torch.eye(CLASSES)[batch.labels]
    error = logits.softmax(1) - wanted
    ranks = [row.argsort(descending=True).tolist().index(y) for row, y in zip(logits, batch.labels, strict=True)]
    return -(wanted * logits.log_softmax(1)).sum(1), error.T @ colours, error.sum(0), np.array(ranks)


@pytest.mark.parametrize("accumulate", [1, 2, 9])  # 9: more parts than videos
def test_a_step_follows_the_gradient_however_it_is_cut(accumulate):
    batch = make_batch()
    losses, weight, bias, ranks = by_hand(batch)
    training = make_training(regression(), accumulate=accumulate)
    sizes = []
    training.model.register_forward_hook(lambda model, inputs, outputs: sizes.append(len(outputs)))
    moved = step(batch, training)
    assert len(sizes) == min(accumulate, 5) and sum(sizes) == 15
    torch.testing.assert_close(moved[0], -10 * weight.float() / 5)  # the first group's rate is ten times lr
    torch.testing.assert_close(moved[1], -bias.float() / 5)
    assert moved[2].item() == pytest.approx(losses.mean().item())
    assert training.sums.tolist() == pytest.approx([losses.sum().item(), sum(ranks < 1), sum(ranks < 5), 5])


def test_the_network_computes_in_bfloat16_and_the_loss_in_float32(recwarn):
    batch = make_batch()
    seen = []
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        training = make_training(regression(), amp=amp)
        training.model.register_forward_hook(lambda model, inputs, outputs: seen.append(outputs.detach()))
        loss = engine.train_step(training, batch)
        assert seen[-1].dtype == dtype
        scores = torch.stack([part.float().mean(0) for part in seen[-1].chunk(5)])
        torch.testing.assert_close(loss, nn.functional.cross_entropy(scores, batch.labels))
    assert not [warning for warning in recwarn if "autocast" in str(warning.message)]  # float32 asks for none


def test_a_step_whose_scaled_gradient_overflows_leaves_nothing_behind():
    batch, after = make_batch(), []
    for overflows in (0, 1):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4000), nn.Linear(4000, CLASSES))
        model.first_weights = ()
        model.load_state_dict({name: torch.full_like(value, 1e-3) for name, value in model.state_dict().items()})
        settings = TrainingSettings(batch_size=25, lr=0.1, momentum=0.9, amp="fp16", clip_grad=5.0)
        training = Training(model, PIXELS, CPU, settings)
        if overflows:
            training.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
            engine.train_step(training, batch)
            training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        engine.train_step(training, batch)
        after.append(list(model.parameters()))
    torch.testing.assert_close(*after)


def test_the_mean_over_processes_is_the_step_of_one(monkeypatch):
    """Five videos on two processes, three and two: DistributedDataParallel averages what each computes."""
    batch = make_batch()
    weight, bias, _ = step(batch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = [step(share(batch, *part)) for part in ((0, 3), (3, 5))]
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, weight)
    torch.testing.assert_close((shares[0][1] + shares[1][1]) / 2, bias)


def test_the_repeat_that_keeps_processes_in_step_counts_nowhere():
    batch = make_batch()
    training = make_training(regression())
    weight, bias, _ = step(batch._replace(weight=0.0), training)
    assert not weight.any() and not bias.any() and not training.sums.any()


def test_a_clipped_gradient_has_the_length_asked_for():
    weight, bias, _ = step(make_batch(), clip_grad=0.01)
    assert ((weight / 10).square().sum() + bias.square().sum()).sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_a_step_depends_on_seed_epoch_and_batch_alone():
    def loss(epoch, batch, seed=0):
        training = make_training(regression(dropout=0.5), seed=seed)
        training.epoch, training.batch = epoch, batch
        torch.rand(epoch + batch)  # what was drawn before
        return step(make_batch(), training)[2].item()

    assert loss(2, 1) == loss(2, 1)
    assert len({loss(2, 1), loss(1, 2), loss(2, 0), loss(2, 1, seed=1)}) == 4


def epoch(training, loader, after_batch=lambda training: None):
    return engine.train_one_epoch(training, loader, after_batch)


def test_an_epochs_row_is_of_all_its_videos():
    batches = [make_batch(), make_batch(seed=1), make_batch(2, seed=2)]
    hands = [by_hand(batch) for batch in batches]
    losses, ranks = torch.cat([hand[0] for hand in hands]), np.concatenate([hand[3] for hand in hands])
    training = make_training(regression(), lr=1e-12)
    training.epoch = 4
    done = []
    row = epoch(training, Batches(*batches), lambda training: done.append(training.batch))
    assert row["Epoch"] == 4 and row["lr"] == 1e-12 and 0 <= row["Data Time"] <= row["Batch Time"] < 10
    assert row["Loss"] == pytest.approx(losses.mean().item())
    assert row["Prec@1"] == pytest.approx(100 * np.mean(ranks < 1))
    assert row["Prec@5"] == pytest.approx(100 * np.mean(ranks < 5))
    assert done == [1, 2, 3]  # a run saved there goes on with the next batch


def test_an_epoch_without_numbers_ends_in_one_line():
    training = make_training(regression(), lr=np.nan)
    with pytest.raises(InputError, match="no longer a number, in the batch of 1.0, 1.1"):
        epoch(training, Batches(make_batch(2), make_batch(2, seed=1)))


def test_a_tests_logits_are_those_of_the_plain_network_averaged_over_views():
    """Two samples in three views of each video: clips stand view by view, and both means are taken by hand."""
    torch.manual_seed(0)
    model = network.build_model("resnet18", 3, CLASSES).train()
    batches = [make_batch(2, 6, 32, seed) for seed in (1, 0)]  # not in the list's order, as from several processes
    padding = make_batch(1, 6, 32, 2)._replace(weight=0.0)
    loader = Batches(*batches, padding=[padding], sampling=Sampling(2, 3))
    stops = []
    training = Training(model, PIXELS, CPU, TrainingSettings(lr=5e-4, batch_size=25, amp="off"))
    found = evaluation.test(training, loader, lambda: stops.append(1))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert len(stops) == 3
    assert list(found.frame_logits) == list(found.labels) == ["0.0", "0.1", "1.0", "1.1"]

    plain = copy.deepcopy(model).eval()
    losses, ranks = [], []
    for batch in batches:
        with torch.no_grad():
            logits = plain(to_input(clips_of(batch, "rgb", CPU), PIXELS)).numpy().reshape(2, 3, 2, CLASSES)
        for name, label, clips in zip(batch.names, batch.labels.tolist(), logits, strict=True):
            samples = [(clips[0, s] + clips[1, s] + clips[2, s]) / 3 for s in (0, 1)]
            np.testing.assert_allclose(found.frame_logits[name], samples, rtol=1e-3, atol=1e-4)
            assert found.labels[name] == label
            video = (samples[0] + samples[1]) / 2
            losses.append(np.log(np.exp(video - video[label]).sum()))
            ranks.append(int((video > video[label]).sum()))
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-3)
    assert found.accuracy["top1"] == pytest.approx(100 * np.mean(np.array(ranks) < 1))
    assert found.accuracy["top5"] == pytest.approx(100 * np.mean(np.array(ranks) < 5))
