"""Crops, flips, resizing and normalisation against Pillow, torchvision and the formulas of the papers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataloader import preparation as transforms
from dataloader.preparation import Preparation
from utils import InputError


def test_a_flip_mirrors_and_negates_x_and_only_x():
    clips = torch.randint(0, 256, (2, 20, 5, 7), dtype=torch.uint8)
    flipped = transforms.flip_clips(clips, torch.tensor([True, False]), "flow")
    assert torch.equal(flipped[1], clips[1])
    for pair in range(10):
        x, y = clips[0, 2 * pair], clips[0, 2 * pair + 1]
        assert torch.equal(flipped[0, 2 * pair], 255 - torch.fliplr(x))
        assert torch.equal(flipped[0, 2 * pair + 1], torch.fliplr(y))
    assert torch.equal(transforms.flip_clips(clips, torch.tensor([True, True]), "rgbdiff"), clips.flip(-1))


@pytest.mark.parametrize("shape", [(5, 3, 50, 70), (5, 2, 50, 70), (1, 1, 30, 20)])
def test_resizing_is_pillows(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)
    result = transforms.resize_planes(images, 48)
    for n in range(shape[0]):
        for c in range(shape[1]):
            pil = Image.fromarray(images[n, c].numpy()).resize((48, 48), Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(pil).astype(int) - result[n, c].numpy()).max() <= 1


def test_random_crops_are_everywhere_inside_and_of_the_size():
    rng = np.random.default_rng(0)
    boxes = [transforms.random_crop(240, 320, 224, rng) for _ in range(5000)]
    assert {(b.height, b.width) for b in boxes} == {(224, 224)}
    assert {b.top for b in boxes} == set(range(17)) and {b.left for b in boxes} == set(range(97))
    box = transforms.random_crop(100, 150, 224, rng)  # a small image's largest square
    assert (box.height, box.width, box.top) == (100, 100, 0) and 0 <= box.left <= 50


@pytest.mark.parametrize("positions", [5, 13])
def test_multiscale_crops_are_tsns(positions):
    """Sides from 256 * {1, .875, .75, .66} = 256, 224, 192, 168, neighbouring ones paired; 5 or 13 places."""
    rng = np.random.default_rng(0)
    boxes = [transforms.multiscale_crop(256, 340, rng, positions=positions) for _ in range(6_000)]
    sides = [256, 224, 192, 168]
    pairs = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert {(b.height, b.width) for b in boxes} == pairs
    for box in boxes[:1000]:
        assert 0 <= box.top <= 256 - box.height and 0 <= box.left <= 340 - box.width
    # 256 - 168 = 88 and 340 - 168 = 172 pixels are free, in quarters of 22 and 43
    five = {(0, 0), (0, 172), (88, 0), (88, 172), (44, 86)}
    edges, inner = {(44, 0), (44, 172), (0, 86), (88, 86)}, {(22, 43), (22, 129), (66, 43), (66, 129)}
    places = {(b.top, b.left) for b in boxes if (b.height, b.width) == (168, 168)}
    assert places == (five if positions == 5 else five | edges | inner)


def test_test_views():
    assert transforms.test_boxes(240, 320, "squash", 1, 224) == [(0, 0, 240, 320)]
    assert transforms.test_boxes(256, 340, "center", 1, 224) == [(16, 58, 224, 224)]
    five = transforms.test_boxes(256, 340, "center", 5, 224)
    assert set(five) == {(t, left, 224, 224) for t, left in [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]}
    assert transforms.test_boxes(256, 340, "center", 10, 224) == five  # the other five are their flips
    with pytest.raises(InputError, match="center"):
        transforms.test_boxes(256, 340, "squash", 10, 224)


@pytest.mark.parametrize(("height", "width", "size"), [(340, 256, 224), (100, 130, 224), (240, 320, 96)])
def test_objects_are_as_large_in_the_test_crop_as_in_random_crops(height, width, size):
    """Both cut the same number of pixels for a network's input, so both are resized by the same factor."""
    trained = transforms.random_crop(height, width, size, np.random.default_rng(0))
    views = transforms.test_boxes(height, width, "crop", 5, size)
    assert {(view.height, view.width) for view in views} == {(trained.height, trained.width)}
    centre = views[0]
    assert abs(2 * centre.top + centre.height - height) <= 2 and abs(2 * centre.left + centre.width - width) <= 2


def test_a_preparation_remembers_how_the_images_were_extracted():
    settings = {"method": "raft", "model": "raft_small", "bound": 16.0, "sampling_rate": 5}
    known = Preparation().with_extraction({**settings, "short_side": 0, "quality": 95})
    found = (known.flow_method, known.flow_bound, known.sampling_rate, known.short_side, known.quality)
    assert found == ("raft_small", 16.0, 5, 0, 95)
    assert Preparation().with_extraction({"method": "tvl1"}).flow_method == "tvl1"
    assert known.with_extraction({}) == Preparation()  # nothing is known of other images


def test_a_preparation_survives_a_checkpoint(tmp_path):
    preparation = Preparation("flow", mean=(0.5,), std=(0.226,), stack_length=5, flow_method="tvl1", flow_bound=20.0)
    torch.save(preparation.as_dict(), tmp_path / "p.pth")
    assert Preparation.from_dict(torch.load(tmp_path / "p.pth", weights_only=True)) == preparation
    assert Preparation.from_dict(json.loads(json.dumps(preparation.as_dict()))) == preparation
    with pytest.raises(InputError, match="colour"):
        Preparation.from_dict({"modality": "rgb", "colour": "bgr"})
