"""Which clips are drawn: TSN's thirds, the even spread of a test, and batches that no worker can change."""

import numpy as np
import pytest

from dataloader import sampling
from dataloader.preparation import Preparation


def starts_in(count, samples, starts, modality="rgb"):
    preparation = Preparation(modality, stack_length=10 if modality == "flow" else 1)
    return sampling.TestSampling(samples, starts=starts).starts_in(count, preparation).tolist()


@pytest.mark.parametrize(("frames", "segments"), [(31, 3), (3, 3), (19, 1)])
def test_one_start_in_each_equal_part(frames, segments):
    """The parts cover the video without gap or overlap, in order, and are of equal length but for one frame."""
    drawn = np.array([sampling.train_starts(frames, segments, sampling.rng_for(0, 0, i)) for i in range(1000)])
    parts = [sorted(set(starts)) for starts in drawn.T.tolist()]
    assert [frame for part in parts for frame in part] == list(range(frames))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("valid", "samples"), [(177, 19), (5, 19), (1, 19)])
def test_an_even_spread_covers_both_ends(valid, samples):
    starts = sampling.test_starts(valid, samples)
    assert len(starts) == samples and starts[0] == 0 and starts[-1] == valid - 1
    assert np.abs(starts - np.linspace(0, valid - 1, samples)).max() <= 0.5


def test_a_start_halfway_between_two_is_the_later_one_and_a_single_one_the_middle():
    assert sampling.test_starts(4, 3).tolist() == [0, 2, 3]
    assert sampling.test_starts(11, 1).tolist() == [5]


def test_the_originals_starts():
    """Its val_sample19: i * int((frame_count - 10 + 1) / 19), the table's count being one below the video's frames."""
    for frames in (29, 48, 164, 1776):
        in_its_table = frames - 1
        theirs = [i * int((in_its_table - 10 + 1) / 19) for i in range(19)]
        assert starts_in(frames, 19, "original") == starts_in(in_its_table, 19, "original", "flow") == theirs
        assert theirs[-1] + 10 < frames  # a stack of 10 pairs needs 11 frames
    assert starts_in(20, 19, "original") == [0] * 19


def test_tsns_starts():
    """Its _get_test_indices: the middles of 25 equal parts, cut to whole frames."""
    for valid in (1, 7, 25, 100, 181, 299):
        tick = valid / float(25)
        assert starts_in(valid, 25, "tsn") == [int(tick / 2.0 + tick * x) for x in range(25)]
    assert starts_in(100, 25, "tsn") == list(range(2, 100, 4))


def batches(videos, size, epoch=0, first=0, seed=0, rank=0, world=1):
    sampler = sampling.EpochBatches(videos, size, seed=seed, rank=rank, processes=world)
    sampler.epoch, sampler.first_batch = epoch, first
    assert len(list(sampler)) == len(sampler)
    return list(sampler)


@pytest.mark.parametrize(("videos", "size", "world"), [(25, 8, 2), (25, 8, 3), (9, 4, 4)])
def test_processes_share_the_batches_of_one_and_an_epoch_visits_each_video_once(videos, size, world):
    whole = batches(videos, size, epoch=3)
    assert sorted(index for batch in whole for _, index in batch) == list(range(videos))
    shares = [batches(videos, size, epoch=3, rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(whole, *shares, strict=True):  # all processes take part in every step
        assert sorted(item for part in parts[: len(batch)] for item in part) == sorted(batch)


@pytest.mark.parametrize(("videos", "size", "count", "sizes"), [(9537, 64, 150, {63, 64}), (33, 32, 2, {16, 17})])
def test_no_batch_is_a_small_rest(videos, size, count, sizes):
    """UCF101's 9,537 = 149 x 64 + 1 would end each epoch with a step from one video's batch statistics."""
    found = batches(videos, size)
    assert len(found) == count and {len(batch) for batch in found} == sizes
    sampler = sampling.EpochBatches(videos, size)
    assert [sampler.size(number) for number in range(count)] == [len(batch) for batch in sampler]


def test_epochs_and_seeds_are_shuffled_differently_and_repeatably():
    def order(**kwargs):
        return [index for batch in batches(50, 8, **kwargs) for _, index in batch]

    assert order(epoch=0) == order(epoch=0) != order(epoch=1)
    assert order(seed=0) != order(seed=1)
    assert order(epoch=1)[14:] == order(epoch=1, first=2)  # seven batches of seven or eight: two are the first 14
    assert order(seed=None) == list(range(50))
