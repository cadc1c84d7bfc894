"""Semantic maps, low-resolution and masked images: the channels that they add, and zeros if they are dropped."""

import copy

import pytest
import torch
import torch.nn.functional as F

from latentdiff.conditioning.inpainting import MaskedCondition, MaskedConfig
from latentdiff.conditioning.low_res import LowResCondition, LowResConfig
from latentdiff.conditioning.semantic import SemanticCondition, SemanticConfig
from latentdiff.layers import images_to_float

KEEP, DROP = torch.zeros(2, dtype=torch.bool), torch.tensor([False, True])
MAP = torch.randint(0, 5, (2, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGE = torch.randint(0, 256, (2, 16, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def encode(x):
    """A stand-in for an autoencoder of factor 4 with two channels."""
    return F.avg_pool2d(x, 4)[:, :2]


def test_a_map_equals_the_original_one_hot_halved_twice_and_convolved() -> None:
    module = SemanticCondition(SemanticConfig(classes=5, channels=3), factor=4).double()
    x = F.one_hot(MAP.long(), 5).permute(0, 3, 1, 2).double()
    for _ in range(2):
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    expected = module.channel_mapper(x)
    assert torch.allclose(module({"segmentation": MAP}, KEEP).concat, expected, atol=1e-12)
    assert module.channel_mapper.weight.shape == (3, 5, 1, 1) and module.channel_mapper.bias is None


def test_a_low_resolution_image_is_resized_to_the_latent_unless_it_has_its_size() -> None:
    same = LowResCondition(LowResConfig(), ratio=1.0)({"low_res": IMAGE}, KEEP).concat
    assert torch.equal(same, images_to_float(IMAGE)) and same.abs().max() <= 1
    for ratio, size in ((4.0, (64, 96)), (0.5, (8, 12))):
        assert LowResCondition(LowResConfig(), ratio)({"low_res": IMAGE}, KEEP).concat.shape == (2, 3, *size)


def test_the_masked_region_is_black_before_encoding_and_the_mask_is_the_last_channel() -> None:
    module = MaskedCondition(MaskedConfig(), z_channels=2, factor=4, encode=encode)
    mask = torch.zeros(2, 16, 24, dtype=torch.uint8)
    mask[:, :8, :12] = 1
    x = module({"image": IMAGE, "mask": mask}, KEEP).concat
    assert x.shape == (2, 3, 4, 6) and module.concat_channels == 3
    latent_mask = torch.full((4, 6), -1.0)
    latent_mask[:2, :3] = 1
    assert torch.equal(x[0, -1], latent_mask)
    assert torch.allclose(x[:, :2, :2, :3], torch.tensor(-1.0), atol=1e-6)
    assert torch.allclose(x[:, :2, 2:], encode(images_to_float(IMAGE))[:, :, 2:], atol=1e-6)


def test_every_pixel_distinguishes_masks_with_equal_top_left_pixels() -> None:
    masks = torch.zeros(2, 16, 24, dtype=torch.uint8)
    masks[1, 1:4, 5:8] = 1  # within a cell, without its corner
    one, every = (
        MaskedCondition(MaskedConfig(every_pixel=value), z_channels=2, factor=4, encode=encode)
        for value in (False, True)
    )
    a, b = (module({"image": IMAGE, "mask": masks}, KEEP).concat[:, 2:] for module in (one, every))
    assert a.shape == (2, 1, 4, 6) and torch.equal(a[0], a[1])
    assert b.shape == (2, every.concat_channels - 2, 4, 6) == (2, 64, 4, 6)
    pixels = F.pixel_shuffle(b, 4)  # mask and image, gray in the masked region
    assert torch.equal(pixels[:, 0], masks.float() * 2 - 1)
    assert torch.equal(pixels[:, 1:], images_to_float(IMAGE) * (1 - masks[:, None].float()))


@pytest.mark.parametrize("every_pixel", [False, True])
def test_pixels_in_the_masked_region_have_no_effect(every_pixel: bool) -> None:
    module = MaskedCondition(MaskedConfig(every_pixel=every_pixel), z_channels=2, factor=4, encode=encode)
    mask = (torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(2)) < 0.5).byte()
    other = torch.where(mask[..., None] > 0, 255 - IMAGE, IMAGE)
    a, b = (module({"image": image, "mask": mask}, KEEP).concat for image in (IMAGE, other))
    assert torch.equal(a, b) and not torch.equal(a, module({"image": 255 - IMAGE, "mask": mask}, KEEP).concat)


def test_a_dropped_condition_is_zero_in_every_channel() -> None:
    batch = {"segmentation": MAP, "low_res": IMAGE, "image": IMAGE, "mask": torch.ones(2, 16, 24)}
    for module in (SemanticCondition(SemanticConfig(5), 4), LowResCondition(LowResConfig(), 1.0),
                   MaskedCondition(MaskedConfig(), 2, 4, encode)):  # fmt: skip
        x = module(batch, DROP).concat
        assert x[0].abs().sum() > 0 and x[1].abs().sum() == 0


def test_a_deep_copy_of_the_module_does_not_copy_the_autoencoder() -> None:
    module = MaskedCondition(MaskedConfig(), 2, 4, encode)
    assert copy.deepcopy(module).encode is encode and not module.state_dict()
