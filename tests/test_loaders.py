"""From the flags to a stream's loaders: which videos, which sampling, which batches."""

import shutil

import pytest
import torch

from dataloader import clips as c
from dataloader.frames import ReadFrame
from dataloader.layouts import index_frames
from dataloader.preparation import default_preparation
from dataloader.sampling import TestSampling, TrainSampling
from utils import InputError

CPU = torch.device("cpu")


def make_data(tiny, device=CPU, index=None, preparation=None, **given):
    """spatial_cnn.py's loaders on the tiny videos: groups 1 and 2 of each class test, 8 and 22 train."""
    training = TrainSampling(2, "multiscale", 13, flip=False)
    usual = {"ucf_list": None, "split": "1", "testing": TestSampling(6, 5), "training": training, "batch_size": 4,
             "workers": 0, "seed": 5}  # fmt: skip
    index = index or index_frames(tiny / "rgb", "rgb")
    preparation = preparation or default_preparation("rgb", 48, "squash")
    return c.make_data(index, ReadFrame(index.root), preparation, device, **{**usual, **given})


def groups_of(loader):
    return sorted(source.video.name.split("_")[1] for source in loader.dataset.sources)


def test_each_subset_has_its_videos_and_sampling(tiny):
    data = make_data(tiny)
    assert groups_of(data.train) == ["g08"] * 3 + ["g22"] * 3 and groups_of(data.test) == ["g01"] * 3 + ["g02"] * 3
    assert data.select is data.test and data.root == tiny / "rgb"
    assert data.train.dataset.sampling == TrainSampling(segments=2, crop="multiscale", crop_positions=13, flip=False)
    assert data.test.dataset.sampling == TestSampling(samples=6, views=5)
    assert (data.train.batch_size, data.train.dataset.seed) == (4, 5)


def test_held_out_groups_select_and_do_not_train(tiny):
    data = make_data(tiny, val_groups=1)
    groups = {groups_of(loader)[0]: loader for loader in (data.train, data.select)}
    assert groups == {"g08": data.train, "g22": data.select} and groups_of(data.test) == ["g01"] * 3 + ["g02"] * 3
    assert data.select.dataset.sampling == data.test.dataset.sampling
    assert data.select.batch_size == data.test.batch_size


def test_flow_and_differences_are_cropped_at_tsns_three_scales(tiny):
    assert make_data(tiny).train.dataset.sampling.scales == (1, 0.875, 0.75, 0.66)
    data = make_data(tiny, preparation=default_preparation("rgbdiff", 48, "squash", 5))
    assert data.train.dataset.sampling.scales == (1, 0.875, 0.75)


def test_a_test_alone_needs_no_training_videos(tiny):
    data = make_data(tiny, training=None)
    assert data.train is None and data.select is data.test and len(data.test.dataset) == 6
    assert groups_of(make_data(tiny, training=None, val_groups=1).select) == ["g22"] * 3


@pytest.mark.parametrize(
    ("groups", "val_groups", "missing"), [((8, 22), 0, "test"), ((1, 2), 0, "training"), ((1, 2), 1, "validation")]
)
def test_a_subset_without_videos_is_named(tiny, tmp_path, groups, val_groups, missing):
    for folder in (tiny / "rgb").glob("v_*"):
        if int(folder.name.split("_")[2][1:]) in groups:
            shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(InputError, match=f"no {missing} video of split 1 is under"):
        make_data(tiny, index=index_frames(tmp_path, "rgb"), val_groups=val_groups)


def test_only_one_process_tells_of_the_group_rule(tiny, monkeypatch, capsys):
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        make_data(tiny)
        assert ("by UCF101's group rule" in capsys.readouterr().out) == (rank == 0)
