"""From images on disk to a batch: channel order, shared crops and flips, what travels, and bad files."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dataloader import clips as c
from dataloader import frames
from dataloader.clips import Loader
from dataloader.frames import ReadFlow, ReadFrame, find_sources
from dataloader.layouts import index_frames
from dataloader.lists import load_split
from dataloader.preparation import Preparation, default_preparation
from dataloader.sampling import TestSampling, TrainSampling
from engine.evaluation import each_once
from utils import InputError

FLOW = Preparation("flow", 48, "squash", (0.0,), (1.0,), 10)
CPU = torch.device("cpu")


def flow_set(tiny, sampling, preparation=FLOW, **options):
    index = index_frames(tiny / "flow", "flow")
    videos = load_split(None, 1, index.videos).train
    return c.ClipDataset(find_sources(index, videos), ReadFlow(index.root), preparation, sampling, **options)


def rgb_set(tiny, sampling, preparation=None, **options):
    index = index_frames(tiny / "rgb", "rgb")
    videos = load_split(None, 1, index.videos).train
    preparation = preparation or default_preparation("rgb", 48, "squash")
    return c.ClipDataset(find_sources(index, videos), ReadFrame(index.root), preparation, sampling, **options)


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_stack_is_x1_y1_to_x10_y10(tiny):
    """Channel 2k is u of pair start+k, channel 2k+1 its v: read here with Pillow, at the size on disk."""
    preparation = dataclasses.replace(FLOW, size=72)
    dataset = flow_set(tiny, TrainSampling(segments=1, flip=False), preparation)
    index = next(i for i, s in enumerate(dataset.sources) if s.video.name == "HammerThrow_g08_c01")
    batch = dataset[0, index]
    clip = c.clips_of(batch, "flow", CPU)[0].float()
    count = dataset.sources[index].count
    candidates = {}
    for start in range(count - 9):
        for left in range(86 - 72 + 1):
            x = pixels(tiny / f"flow/u/v_HammerThrow_g08_c01/frame{start + 1:06d}.jpg")[:, left : left + 72]
            candidates[start, left] = np.abs(clip[0].numpy() - x).max()
    start, left = min(candidates, key=candidates.get)
    assert candidates[start, left] <= 2  # two JPEG decoders
    for k in range(10):
        for plane, component in enumerate("uv"):
            image = pixels(tiny / f"flow/{component}/v_HammerThrow_g08_c01/frame{start + k + 1:06d}.jpg")
            assert np.abs(clip[2 * k + plane].numpy() - image[:, left : left + 72]).max() <= 2


@pytest.mark.parametrize("crop", ["random", "multiscale", "squash"])
def test_one_crop_and_one_flip_for_a_whole_video(tmp_path, crop):
    """Every image shows its own column numbers, so that an image's crop and flip can be read off its pixels."""
    for component in "uv":
        folder = tmp_path / component / "v_Archery_g08_c01"
        folder.mkdir(parents=True)
        ramp = np.broadcast_to((40 + np.arange(90) * 2).astype(np.uint8), (80, 90))
        for number in range(1, 31):
            Image.fromarray(ramp).save(folder / f"frame{number:06d}.jpg", quality=100)
    index = index_frames(tmp_path, "flow")
    sources = find_sources(index, load_split(None, 1, index.videos).train)
    dataset = c.ClipDataset(sources, ReadFlow(tmp_path), FLOW, TrainSampling(3, crop), seed=1)
    firsts, lasts, flips = set(), set(), set()
    for epoch in range(20):
        batch = dataset[epoch, 0]
        assert len(set(batch.flip.tolist())) == 1
        stack = c.clips_of(batch, "flow", CPU).float()
        flipped = bool(batch.flip[0])
        flips.add(flipped)
        x, y = stack[:, 0::2], stack[:, 1::2]
        assert (x - x[:1, :1]).abs().max() <= 2 and (y - y[:1, :1]).abs().max() <= 2  # one crop for all
        expected = 255 - x if flipped else x
        assert (expected - y).abs().max() <= 2  # x alone is negated
        rising = (y[0, 0, 0].diff() > 0).float().mean()
        assert rising > 0.6 if not flipped else rising < 0.4
        firsts.add(round(y[0, 0, 0, 0].item()))
        lasts.add(round(y[0, 0].max().item()))
    assert flips == {True, False}
    if crop == "squash":  # all of the image every time; 48 columns of 90 pixels, each the mean of about two
        assert firsts <= set(range(40, 44)) | set(range(214, 219)) and lasts <= set(range(214, 219))
        return
    assert len(firsts) > 4
    if crop == "multiscale":  # TSN's corners: the first column shows 40, the last 40 + 89 * 2
        assert min(firsts) < 45 and max(lasts) > 213


def test_the_same_item_whatever_was_read_before(tiny):
    def item(dataset, epoch, index):
        batch = dataset[epoch, index]
        return batch.images.sum().item(), batch.clips.tolist(), batch.flip.tolist()

    a, b = (rgb_set(tiny, TrainSampling(), seed=7) for _ in range(2))
    b[4, 1], b[0, 3]
    assert item(a, 2, 1) == item(b, 2, 1)
    assert len({item(a, epoch, 1)[0] for epoch in range(6)}) > 3
    other = rgb_set(tiny, TrainSampling(), seed=8)
    assert [item(a, e, 1) for e in range(3)] != [item(other, e, 1) for e in range(3)]


def test_workers_change_nothing(tiny):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = Loader(flow_set(tiny, TrainSampling(2)), 4, 2, CPU)
    seen = [(b.names, int(b.images.long().sum()), b.flip.tolist()) for b in loader.epoch(5)]
    expected = [(b.names, int(b.images.long().sum()), b.flip.tolist())
                for b in Loader(flow_set(tiny, TrainSampling(2)), 4, 0, CPU).epoch(5)]  # fmt: skip
    assert seen == expected
    assert [b[0] for b in expected[1:]] == [b.names for b in loader.epoch(5, first_batch=1)]
    assert torch.equal(before, torch.get_rng_state())  # loading draws nothing from the training's generator


def test_a_worker_uses_its_memory_again_for_larger_and_smaller_batches(tiny, monkeypatch):
    monkeypatch.setattr(c, "get_worker_info", lambda: True)
    dataset = rgb_set(tiny, TestSampling(3), default_preparation("rgb", 48, "squash"))
    items = [dataset[0, i] for i in range(len(dataset))]
    collate = c.Collate()
    places = []
    for count in (2, 2, 2, 1, 2, 3, 1):
        batch = collate(items[:count])
        assert torch.equal(batch.images, torch.cat([item.images for item in items[:count]]))
        assert batch.images.is_shared()
        places.append(batch.images.data_ptr())
    assert places[:3] == places[3:5] + places[2:3] and places[6] == places[0]
    assert len(set(places)) == 4  # the sixth needed more than there was


def test_a_training_is_shuffled_by_its_seed_and_a_test_stands_in_list_order(tiny, monkeypatch):
    def names(sampling, epoch=0, **options):
        loader = Loader(flow_set(tiny, sampling, **options), 4, 0, CPU)
        batches = [batch.names for batch in loader.epoch(epoch)]
        assert len(batches) == len(loader) == 2  # 3 and 3 of the 6 videos
        return batches

    listed = [source.video.name for source in flow_set(tiny, TestSampling(1)).sources]
    assert names(TestSampling(1)) == names(TestSampling(1), 1) == [listed[:3], listed[3:]]
    orders = [names(TrainSampling(1), *options[:1], **options[1]) for options in ((0, {}), (1, {}), (0, {"seed": 1}))]
    assert len({str(order) for order in orders}) == 3
    assert all(sorted(first + rest) == sorted(listed) for first, rest in orders)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert names(TestSampling(1)) == [listed[1:3:2], listed[4:6:2]]


def test_a_test_decodes_and_sends_each_image_once(tiny):
    dataset = flow_set(tiny, TestSampling(19))
    reads = []
    read = dataset.read
    dataset.read = lambda frames, steps: reads.extend(steps) or read(frames, steps)
    batch = dataset[0, 0]
    assert batch.clips.shape == (19, 10)
    assert len(reads) == len(set(reads)) == len(batch.images) == dataset.sources[0].count
    assert batch.clips[0].tolist() == list(range(10)) and batch.clips[-1, -1] == dataset.sources[0].count - 1


def test_the_repeat_that_pads_a_batch_has_no_weight(tiny, monkeypatch):
    """Six videos in batches of at most one on two processes: the second repeats what the first counts."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    batches = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        batches.append(list(Loader(flow_set(tiny, TrainSampling()), 1, 0, CPU).epoch(0)))
    for first, repeat in zip(*batches, strict=True):
        assert (first.weight, repeat.weight) == (2, 0)  # the mean over two processes is the video's own gradient
        assert first.names == repeat.names and torch.equal(first.images, repeat.images)


def test_equal_clips_are_computed_once_and_the_vote_is_the_same(tiny):
    """Videos of 11 to 18 flow pairs have 2 to 9 different stacks of 10; the test asks for 19, with flips for 190."""
    preparation = dataclasses.replace(FLOW, test_resize="center")
    loader = Loader(flow_set(tiny, TestSampling(19, 10), preparation), 3, 0, CPU)
    for batch in loader.epoch(0):
        once, place = each_once(batch)
        counts = [source.count - 9 for source in loader.dataset.sources if source.video.name in batch.names]
        assert len(once.clips) == 10 * sum(min(19, count) for count in counts) < len(batch.clips)
        theirs, ours = c.clips_of(batch, "flow", CPU), c.clips_of(once, "flow", CPU)[place]
        assert torch.equal(theirs, ours)


def test_ten_views_are_five_crops_and_their_flips(tiny):
    preparation = dataclasses.replace(default_preparation("rgb", 63, "center"))  # 224/256 of 72: no resizing
    dataset = rgb_set(tiny, TestSampling(2, 10), preparation)
    batch = dataset[0, 0]
    views = c.clips_of(batch, "rgb", CPU).float().unflatten(0, (10, 2))
    source = dataset.sources[0]
    image = pixels(f"{source.folder}/frame000001.jpg").astype(int)
    h, w = image.shape[:2]
    tops_lefts = [((h - 63) // 2, (w - 63) // 2), (0, 0), (0, w - 63), (h - 63, 0), (h - 63, w - 63)]
    for view in range(10):
        top, left = tops_lefts[view % 5]
        crop = image[top : top + 63, left : left + 63]
        crop = crop[:, ::-1] if view >= 5 else crop
        assert np.abs(views[view, 0].permute(1, 2, 0).numpy() - crop).mean() < 3, view


def test_a_video_too_short_for_a_stack_is_named(tiny, tmp_path):
    shutil.copytree(tiny / "flow", tmp_path / "flow")
    for component in "uv":
        for number in range(10, 40):
            (tmp_path / f"flow/{component}/v_Archery_g08_c01/frame{number:06d}.jpg").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"v_Archery_g08_c01 has 9 flow pairs and one clip needs 10"):
        flow_set(tmp_path, TrainSampling())
    for component in "uv":
        folder = tmp_path / f"flow/{component}/v_Archery_g08_c01"
        shutil.copyfile(folder / "frame000009.jpg", folder / "frame000010.jpg")
    assert flow_set(tmp_path, TestSampling(2))[0, 0].clips.tolist() == [list(range(10))] * 2


def damage(path, how):
    if how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "gone":
        path.unlink()
    elif how == "size":
        Image.open(path).resize((40, 30)).save(path)


@pytest.mark.parametrize("how", ["half", "gone", "size"])
def test_a_bad_frame_is_named(tiny, tmp_path, how):
    shutil.copytree(tiny / "rgb", tmp_path / "rgb")
    dataset = rgb_set(tmp_path, TestSampling(30))
    damage(tmp_path / "rgb/v_Hammering_g08_c01/frame000005.jpg", how)
    with pytest.raises(InputError, match="v_Hammering_g08_c01[^\n]*$"):
        list(Loader(dataset, 2, how == "half", CPU).epoch(0))


def encoded(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def test_without_simplejpeg_pillow_reads_the_same(tiny, monkeypatch):
    colours, gray = (tiny / f"{folder}/v_Archery_g08_c01/frame000001.jpg" for folder in ("rgb", "flow/u"))
    expected = frames.decode_rgb(colours.read_bytes(), colours), frames.decode_gray(gray.read_bytes(), gray)
    monkeypatch.setattr(frames, "simplejpeg", None)
    found = frames.decode_rgb(colours.read_bytes(), colours), frames.decode_gray(gray.read_bytes(), gray)
    for a, b in zip(expected, found, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
    with pytest.raises(InputError, match="not a whole image"):
        frames.decode_rgb(colours.read_bytes()[:-500], colours)


def test_planes_are_equal_up_to_what_jpeg_makes_of_them():
    gray = np.full((8, 8), 100, np.uint8)
    for difference, fine in ((2, True), (3, False)):
        data = encoded(Image.fromarray(np.stack((gray, gray, gray + np.uint8(difference)), -1)))
        if fine:
            assert np.array_equal(frames.decode_gray(data, "x.png"), gray)
        else:
            with pytest.raises(InputError, match="is RGB, and flow is grayscale"):
                frames.decode_gray(data, "x.png")
    with pytest.raises(InputError, match="is CMYK, and flow is grayscale"):
        frames.decode_gray(encoded(Image.fromarray(gray).convert("CMYK"), "JPEG"), "x.jpg")


@pytest.mark.gpu
def test_batches_sent_ahead_to_a_gpu_are_the_same(tiny):
    gpu = torch.device("cuda")
    dataset = flow_set(tiny, TrainSampling(2))
    expected = list(Loader(dataset, 2, 0, CPU).epoch(1))
    got = list(c.sent_ahead(Loader(dataset, 2, 2, gpu).epoch(1), gpu))
    assert [b.names for b in got] == [b.names for b in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.images.is_cuda and torch.equal(a.images.cpu(), b.images)
        assert torch.equal(c.clips_of(a, "flow", gpu).cpu(), c.clips_of(b, "flow", CPU))
