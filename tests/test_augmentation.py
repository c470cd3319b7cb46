"""Colour jitter: torchvision's numbers, one change for a video's clips, drawn from seed, epoch and video alone."""

import pytest
import torch
import torchvision.transforms.functional as F

from dataloader.preparation import augment, colour_jitter, default_preparation
from engine.training import Training, TrainingSettings
from network import build_model
from utils import InputError


def images(count: int, seed: int = 0, planes: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, planes, 8, 9), generator=torch.Generator().manual_seed(seed)).byte()


def test_each_video_is_changed_as_torchvision_does():
    clips = images(2)
    factors = torch.tensor([[0.7, 1.3, 0.5], [1.4, 0.6, 1.5]])
    for clip, (b, c, s), found in zip(clips, factors.tolist(), colour_jitter(clips, factors), strict=True):
        expected = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(clip / 255, b), c), s)
        assert (found - 255 * expected).abs().max() < 1  # rounded once
    assert torch.equal(colour_jitter(clips, torch.ones(2, 3)), clips)


def test_a_videos_clips_and_images_share_one_change():
    image = images(1)
    clips = image.repeat(2, 5, 1, 1)  # 2 clips of 5 images that are equal
    found = augment(clips, ["v"], 0.4, 0, 0)
    assert found.shape == clips.shape and found.dtype == torch.uint8
    assert torch.equal(found, found[:1, :3].repeat(2, 5, 1, 1)) and not torch.equal(found, clips)


def test_what_is_drawn_follows_from_seed_epoch_and_video():
    clips = images(1).repeat(2, 1, 1, 1)
    both = augment(clips, ["a", "b"], 0.4, 0, 0)
    assert torch.equal(augment(clips[:1], ["b"], 0.4, 0, 0)[0], both[1])  # whatever stands beside it in the batch
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(augment(clips[:1], ["a"], 0.4, 1, 0)[0], both[0])
    assert not torch.equal(augment(clips[:1], ["a"], 0.4, 0, 1)[0], both[0])
    assert augment(clips, ["a", "b"], 0.0, 0, 0) is clips


def test_flow_has_no_colours():
    preparation = default_preparation("flow", 32, "squash", 1)
    with pytest.raises(InputError, match="--colour-jitter needs colours"):
        settings = TrainingSettings(lr=5e-4, batch_size=25, colour_jitter=0.2)
        Training(build_model("resnet18", 2, 2), preparation, torch.device("cpu"), settings)
