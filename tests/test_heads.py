"""Heads on features: sizes of the published ones, what only time can tell, their choice, files and predictions."""

import argparse
import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, SMALL
from sklearn.linear_model import LogisticRegression

import heads
from dataloader.preparation import default_preparation
from engine.crossfit import (
    STRENGTHS,
    fit_first_or_all,
    fit_linear,
    fit_temporal,
    logistic_path,
    look_alikes,
    make_folds,
    out_of_fold,
)  # fmt: skip
from engine.features import trunk_hash
from engine.temporal_heads import TEMPORAL, LinearHead, build_head, train_temporal
from network import build_model
from recogniser.streams import load_head
from saved.feature_file import read_features, write_features
from saved.head_file import read_head
from utils import InputError

CPU = torch.device("cpu")


# --- the published networks ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "millions"), [("ts-lstm", 9.52), ("inception", 4.30)])
def test_published_sizes(kind, millions):
    with torch.device("meta"):
        head = build_head(kind, 4096, 101)
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == millions


def ts_lstm(w, x, training=False):
    """The published structure, gate by gate; `w` are the weights. In training each step has its own batch norm."""

    def norm(name, z):
        """z (videos, ...): over the videos in training."""
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if training:
            mean, var = z.mean(0), z.var(0, correction=0)
        return (z - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    segments = [norm(f"norms.{place}", x[:, 8 * place : 8 * place + 8]).max(1).values for place in range(3)]
    h = c = torch.zeros(len(x), 512)
    for part in segments:
        gates = part @ w["lstm.weight_ih_l0"].T + w["lstm.bias_ih_l0"]
        gates += h @ w["lstm.weight_hh_l0"].T + w["lstm.bias_hh_l0"]
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return norm("norm", h) @ w["fc.weight"].T + w["fc.bias"]


def inception(w, x):
    """The published structure, layer by layer, in evaluation mode."""

    def norm(name, z):
        shape = (1, -1, *[1] * (z.ndim - 2))
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (w[f"{name}.{key}"].view(shape) for key in keys)
        return (z - mean) / (var + 1e-5).sqrt() * scale + shift

    conv, z = torch.nn.functional.conv2d, x.transpose(1, 2)[:, None]
    for place, pool in enumerate((2, 2, 2, 3)):
        five = conv(z, w[f"fives.{place}.weight"], w[f"fives.{place}.bias"], padding=(0, 2))
        seven = conv(z, w[f"sevens.{place}.weight"], w[f"sevens.{place}.bias"], padding=(0, 3))
        z = torch.nn.functional.max_pool2d(norm(f"norms.{place}", torch.cat((five, seven), 1)).relu(), (1, pool))
    for place in (0, 3, 6):
        z = norm(f"merge.{place + 1}", conv(z, w[f"merge.{place}.weight"], w[f"merge.{place}.bias"])).relu()
    z = norm("classify.1", z.flatten(1) @ w["classify.0.weight"].T + w["classify.0.bias"]).relu()
    return z @ w["classify.4.weight"].T + w["classify.4.bias"]


@pytest.mark.parametrize(("kind", "paper"), [("ts-lstm", ts_lstm), ("inception", inception)])
def test_forward_passes_are_those_of_the_papers(kind, paper):
    torch.manual_seed(3)
    head, x = build_head(kind, 12, 5), torch.randn(6, 25, 12)
    with torch.no_grad():
        first = head(x)  # batch norms leave mean 0 and variance 1
        if kind == "ts-lstm":
            torch.testing.assert_close(first, paper(head.state_dict(), x, True), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(head.eval()(x), paper(head.state_dict(), x), atol=1e-5, rtol=1e-4)


def test_recipes_are_the_authors(monkeypatch):
    """Rates, decay, steps and clamp of ../shared/docs/HEADS.md, as the optimizer sees them in each epoch."""
    seen = []

    class Adam(torch.optim.Adam):
        def step(self, *args, **kwargs):
            group = self.param_groups[0]
            largest = max(float(p.grad.abs().max()) for p in group["params"])
            seen.append((group["lr"], group["weight_decay"], largest))
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    values, labels = rising_or_falling(8, 8, 1)
    train_temporal(TEMPORAL["inception"], [values], labels, 2, np.arange(8), 21, 0, CPU)
    assert [row[0] for row in seen] == pytest.approx([5e-5] * 10 + [5e-6] * 10 + [5e-7])
    assert {row[1] for row in seen} == {0.1} and TEMPORAL["inception"].clip == 0
    seen.clear()
    train_temporal(replace(TEMPORAL["ts-lstm"], clip=1e-3), [values], labels, 2, np.arange(8), 3, 0, CPU)
    assert {row[:2] for row in seen} == {(1e-4, 0)} and max(row[2] for row in seen) == pytest.approx(1e-3)
    assert (TEMPORAL["ts-lstm"].clip, TEMPORAL["ts-lstm"].batch_size, TEMPORAL["inception"].batch_size) == (5, 64, 16)


def rising_or_falling(count, samples, seed):
    """Two classes whose samples are the same numbers, in rising or falling order: any mean is blind."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    values = np.sort(rng.normal(size=(count, samples, 4)), 1)
    values[labels == 1] = values[labels == 1, ::-1]
    return values.astype(np.float16), labels


def quick(kind):
    return replace(TEMPORAL[kind], lr=3e-3, batch_size=16, epochs=12)


@pytest.mark.parametrize("kind", TEMPORAL)
def test_order_in_time_is_learnt_where_the_mean_is_blind(kind):
    values, labels = rising_or_falling(240, 9, 0)
    train, test = np.arange(160), np.arange(160, 240)
    blind = fit_linear(values, train, labels, np.arange(240), 2, 4, 0)
    assert (blind.logits[test].mean(1).argmax(1) == labels[test]).mean() < 0.7
    _, logits = train_temporal(quick(kind), [values], labels, 2, train, 12, 0, CPU, test)
    assert logits.shape == (12, 80, 2)
    assert (logits[-1].argmax(1) == labels[test]).mean() > 0.95


@pytest.mark.parametrize("kind", TEMPORAL)
def test_the_same_seed_gives_the_same_head(kind):
    values, labels = rising_or_falling(20, 8, 1)
    rows = np.arange(20)
    streams = [values[..., :2], values[..., 2:]]
    first, again, other = (
        train_temporal(TEMPORAL[kind], streams, labels, 2, rows, 2, seed, CPU)[0].state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# --- choosing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("informative", [slice(0, 3), slice(3, 40)])
def test_a_head_sees_the_first_stage_alone_where_the_rest_says_nothing(informative):
    rng = np.random.default_rng(0)
    labels, values = np.arange(60) % 2, rng.normal(size=(60, 2, 40))
    values[:, :, informative] += 0.6 * (2 * labels - 1)[:, None, None]
    fit = fit_first_or_all(3, values, np.arange(40), labels, np.arange(60), 2, 4, 0)
    weight = fit.state["fc.weight"].numpy()
    assert weight.shape == (2, 40) and fit.logits.shape == (60, 2, 2)
    assert (weight[:, 3:] == 0).all() == (informative.start == 0)
    np.testing.assert_allclose(values @ weight.T + fit.state["fc.bias"].numpy(), fit.logits, atol=1e-4)


def test_folds_keep_groups_together_and_cover_everything():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(4), 15), np.tile(np.repeat(list("abcde"), 3), 4)
    folds, how = make_folds(labels, groups, 5, 0)
    assert how == "5 folds by group" and sorted(np.concatenate(folds)) == list(range(60))
    for held in folds:
        rest = np.setdiff1d(np.arange(60), held)
        assert not set(groups[held]) & set(groups[rest])
    alone, how = make_folds(labels, np.arange(60), 5, 0)
    assert how == "5 folds by video" and all((np.bincount(labels[held]) == 3).all() for held in alone)
    assert len(make_folds(np.array([0, 0, 1, 1]), np.arange(4), 5, 0)[0]) == 2
    for too_few in (np.zeros(9, int), np.arange(4), np.array([0, 0, 0, 1])):
        with pytest.raises(InputError, match="too few training videos"):
            make_folds(too_few, np.arange(len(too_few)), 3, 0)
    values = rng.normal(size=(60, 3)).astype(np.float32)
    together = out_of_fold(folds, lambda rows, held: values[held])
    np.testing.assert_array_equal(together, values)


@pytest.mark.parametrize(("shape", "classes"), [((40, 90), 3), ((90, 7), 3), ((50, 3), 2)])
def test_logistic_path_is_scikit_learns_answer(shape, classes):
    """Its weights for raw features against a plain fit of z-scores at the same strength."""
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, shape) * rng.uniform(0.5, 20, shape[1])
    y = rng.integers(0, classes, shape[0])
    weights, biases = logistic_path(x, y, classes + 1, [0.1, 10.0])
    z = (x - x.mean(0)) / x.std(0) / np.sqrt(shape[1])
    plain = LogisticRegression(C=10.0, max_iter=5000, tol=1e-8, class_weight="balanced").fit(z, y)
    ours = x @ weights[-1].T + biases[-1]
    theirs = ours[:, 1] - ours[:, 0] if classes == 2 else ours[:, :classes]  # of two classes: the log odds
    np.testing.assert_allclose(theirs, plain.decision_function(z), atol=0.02)
    assert (ours[:, classes] < ours[:, :classes].min(1) - 5).all()  # the class that had no video
    with pytest.raises(InputError, match="are equal"):
        logistic_path(np.ones(shape), y, classes, [0.1, 10.0])


def test_the_choice_sees_no_test_video():
    rng = np.random.default_rng(3)
    values, labels = rng.normal(size=(60, 3, 5)).astype(np.float16), np.arange(60) % 3
    values[np.arange(60), :, labels] += 1.5
    train = np.arange(40)
    first = fit_linear(values, train, labels, np.arange(60), 3, 4, 0)
    values[40:], labels[40:] = 0, 0
    again = fit_linear(values, train, labels, np.arange(60), 3, 4, 0)
    assert first.choice == again.choice and first.choice["C"] in STRENGTHS
    np.testing.assert_array_equal(first.held_out, again.held_out)
    head = LinearHead(5, 3)
    head.load_state_dict(first.state)
    np.testing.assert_allclose(head(torch.from_numpy(values[train]).float()).detach(),
                               first.logits[train].mean(1), rtol=1e-3, atol=1e-3)  # fmt: skip
    assert (first.held_out.argmax(1) == labels[train]).mean() > 0.6


def recordings(classes, number, clips, seed=0):
    """Clips of recordings: each recording is a point of its own, of which its class is a small part."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), number * clips)
    groups = np.repeat(np.arange(classes * number), clips)
    look = 3 * rng.normal(size=(classes * number, 40))[groups] + rng.normal(size=(len(labels), 40))
    look[:, :classes] += np.eye(classes)[labels]
    return look[:, None].astype(np.float16), labels, groups


def test_look_alikes_on_both_sides_ring_and_groups_kept_apart_do_not():
    values, labels, groups = recordings(3, 6, 5)
    videos, alone = [f"v{i:03d}" for i in range(90)], np.arange(90)
    mixed, apart = alone % 3 == 0, np.isin(groups, groups[::15])
    rings = look_alikes(values, labels, alone, videos, mixed, 3, 5, 0)
    assert rings["warns"] and rings["accuracy"] > 90 > 75 > rings["apart"] and rings["shared"] > 0.9
    pairs = [(videos.index(pair["test"]), videos.index(pair["training"])) for pair in rings["pairs"]]
    assert pairs and all(groups[one] == groups[other] for one, other in pairs)
    assert all(mixed[one] and not mixed[other] for one, other in pairs)
    for known, test in ((groups, mixed), (alone, apart)):  # groups that are known; an honest split without them
        assert not look_alikes(values, labels, known, videos, test, 3, 5, 0)["warns"]
    one_clip, labels, groups = recordings(3, 30, 1)
    assert not look_alikes(one_clip, labels, groups, videos, mixed, 3, 5, 0)["warns"]


def test_epochs_are_chosen_on_the_folds():
    values, labels = rising_or_falling(40, 8, 4)
    fit = fit_temporal("inception", [values], np.arange(30), labels, np.arange(40), 2, 3, 0, CPU)
    assert fit.choice["epochs"] == int(np.argmin(fit.choice["tried"])) + 1 and len(fit.choice["tried"]) == 30
    assert fit.logits.shape == (40, 1, 2) and fit.held_out.shape == (30, 2)


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features(tiny, run, tmp_path_factory):
    """Both streams of the tiny set, as the last layer sees them."""
    folder = tmp_path_factory.mktemp("features")
    for stream, script, flag, images in (("spatial", "spatial_cnn.py", "--rgb-dir", "rgb"),
                                         ("motion", "motion_cnn.py", "--flow-dir", "flow")):  # fmt: skip
        run(script, flag, tiny / images, *SMALL, "--size", 32, "--test-samples", 8, "--pooling", "layer4.mean",
            "--features", folder / f"{stream}.npz")  # fmt: skip
    return folder


def load(folder, stream, kind="video"):
    return pickle.loads((folder / f"{stream}_{kind}_preds.pickle").read_bytes())


def test_heads_on_both_streams(features, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(TEMPORAL, "inception", replace(TEMPORAL["inception"], epochs=3))
    out = tmp_path / "my heads"
    both = {name: read_features(features / f"{name}.npz") for name in ("spatial", "motion")}
    flags = [word for name, one in both.items() for word in (f"--{name}", str(one.path))]
    monkeypatch.setattr(sys, "argv", ["heads.py", *flags, "--head", "linear", "inception", "--output", str(out)])
    heads.main()
    told = capsys.readouterr().out
    rows = [line.split()[:2] for line in told.splitlines()[2:] if "cross-entropy" in line or "average" in line]
    assert rows == [["linear", "spatial"], ["linear", "motion"], ["linear", "average"], ["linear", "joined"],
                    ["inception", "both"]]  # fmt: skip
    assert "2 folds by group" in told and f"fusion.py --spatial '{out}/linear/spatial' --motion" in told
    trained = {f"{name}_g{group}_c01" for name in CLASSES for group in ("08", "22")}
    tested = {f"{name}_g{group}_c01" for name in CLASSES for group in ("01", "02")}
    for folder, name in (("linear/spatial", "spatial"), ("joined", "joined"), ("inception/both", "inception")):
        assert set(load(out / folder, name)) == tested and set(load(out / folder / "val", name)) == trained
        assert json.loads((out / folder / "val/predictions.json").read_text())["subset"] == "val"
    # the joined head is the sum of its two parts, which are two streams' checkpoints
    means = {name: torch.from_numpy(one.values).double().mean(1) for name, one in both.items()}
    parts = {name: read_head(out / "joined" / name / "checkpoint.pth.tar").state_dict for name in both}
    said = sum(means[name] @ part["fc.weight"].double().T + part["fc.bias"] for name, part in parts.items())
    for video, logits in load(out / "joined", "joined").items():
        np.testing.assert_allclose(said[both["motion"].videos.index(video)], logits, rtol=1e-2, atol=1e-2)
    # what predict.py reads answers as the predictions say
    for folder, name in (("linear/spatial", "spatial"), ("inception/both", "inception")):
        head = load_head(read_head(out / folder / "checkpoint.pth.tar"))
        for video, logits in load(out / folder, name).items():
            own = {each: one.values[one.videos.index(video)] for each, one in both.items() if each in head.inputs}
            np.testing.assert_allclose(head.answer(own).mean(0), logits, rtol=1e-3, atol=1e-4)
    # a file that was changed by hand
    whole = torch.load(out / "inception/both/checkpoint.pth.tar", weights_only=True)
    for change in ({"head": {"kind": "inception"}}, {"inputs": []}, {"state_dict": {}}):
        torch.save({**whole, **change}, tmp_path / "changed.pth.tar")
        with pytest.raises(InputError, match=r"changed.pth.tar (is an?|cannot be read) .*train it again"):
            load_head(read_head(tmp_path / "changed.pth.tar"))


def made_up(path, stream, **changes):
    given = {"videos": ["a/1", "a/2", "b/1", "b/2"], "labels": [0, 0, 1, 1], "subset": ["train", "test"] * 2, **changes}
    about = {
        "stream": stream, "class_names": ["a", "b"], "network": {"arch": "resnet18", "sha256": "0" * 64},
        "pooling": ["layer4.mean"], "dataset": "own", "split": "1", "samples": 8, "views": 1,
        "preparation": default_preparation("rgb" if stream == "spatial" else "flow", 64, "squash").as_dict(),
        "frames": {"root": "", "folders": {}},
    }  # fmt: skip
    values = given.pop("values", np.zeros((4, 8, 6), np.float16))
    write_features(path, *given.values(), values, about)
    return path


def test_what_cannot_work_is_told(tmp_path):
    spatial = made_up(tmp_path / "s.npz", "spatial")
    assert read_features(spatial).groups.tolist() == ["a/1", "a/2", "b/1", "b/2"]
    moved = ["a/1", "a/2", "b/1", "b/3"]
    cases = {
        "of the motion stream": (made_up(tmp_path / "wrong.npz", "motion"), None),
        "lacks training or test videos": (made_up(tmp_path / "test.npz", "spatial", subset=["test"] * 4), None),
        "holds videos twice, a/1": (
            made_up(tmp_path / "twice.npz", "spatial", videos=["a/1", "a/1", "b/1", "b/2"]), None),
        "m1.npz are of different splits": (spatial, made_up(tmp_path / "m1.npz", "motion", videos=moved)),
        "m2.npz are of different splits": (
            spatial, made_up(tmp_path / "m2.npz", "motion", subset=["test", "train"] * 2)),
    }  # fmt: skip
    for said, (one, other) in cases.items():
        args = argparse.Namespace(spatial=[one], motion=[other] if other else [], head=["linear"], ucf_list=None)
        with pytest.raises(InputError, match=said):
            heads.load_streams(args)
    one, known = read_features(spatial), {"arch": "resnet18", "classes": 2}
    torch.manual_seed(0)
    known["sha256"] = trunk_hash(build_model("resnet18", 3, 2, "none", size=64))
    for said, change in [
        ("another network than none", {}), ("has 6 features a sample, and its network 512", {"network": known}),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            heads.load_network(replace(one, about={**one.about, **change}))
