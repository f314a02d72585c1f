"""Every augmentation against an oracle, and each image with parameters of its own."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chreode.compute.rng import Rng
from chreode.identify.imaging import augment
from chreode.identify.imaging.augment import (
    BLUR,
    CROP,
    ERASE,
    FLIP,
    GREY,
    JITTER,
    REGIMES,
    SIDE,
    Crop,
    Erase,
    Jitter,
    two_views,
)

EVERY = {"jitter": JITTER, "crop": CROP, "flip": FLIP, "grey": GREY, "blur": BLUR, "erase": ERASE}


def pictures(n, seed=0):
    with Rng(seed).scope("pictures"):
        return torch.rand(n, 3, SIDE, SIDE)


def drawn(augmentation, x, seed=0):
    with Rng(seed).scope("views"):
        return augmentation(x)


def places():
    """Return an image that says of each pixel in which row and column it is."""
    at = torch.arange(SIDE) / (SIDE - 1)
    return torch.stack(
        [at[:, None].expand(SIDE, SIDE), at.expand(SIDE, SIDE), at.new_zeros(SIDE, SIDE)]
    )


# crop


def test_the_whole_box_is_the_image():
    x = pictures(3)
    assert torch.equal(augment.crop(x, torch.tensor([[0, 0, SIDE, SIDE]] * 3)), x)


def test_a_box_is_resized_as_torch_does():
    boxes = torch.tensor(
        [[0, 0, 8, 8], [5, 9, 20, 3], [31, 31, 1, 1], [0, 12, 32, 20], [3, 2, 11, 29]]
    )
    x = pictures(len(boxes))
    for image, (top, left, height, width), found in zip(
        x, boxes, augment.crop(x, boxes), strict=True
    ):
        cut = image[None, :, top : top + height, left : left + width]
        wanted = F.interpolate(cut, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def boxes_of(x):
    """Return first row and column, height and width of crops of `places`."""
    low, high = x[:, :2].amin((2, 3)), x[:, :2].amax((2, 3))
    starts, ends = (low * (SIDE - 1)).round(), (high * (SIDE - 1)).round()
    return starts, ends - starts + 1


def test_boxes_have_the_areas_and_ratios_asked_for_and_lie_anywhere():
    crops = drawn(Crop(area=(0.2, 0.6), ratio=(0.5, 2.0)), places().expand(4000, 3, SIDE, SIDE))
    starts, sides = boxes_of(crops)
    height, width = sides.T
    # a side is rounded by half a pixel at the most
    assert ((height + 0.5) * (width + 0.5) / SIDE**2 >= 0.2).all()
    assert ((height - 0.5) * (width - 0.5) / SIDE**2 <= 0.6).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.5).all()
    assert ((height - 0.5) / (width + 0.5) <= 2.0).all()
    share = height * width / SIDE**2
    assert abs(share.mean() - 0.4) < 0.01  # uniform; the standard error is 0.002
    assert abs((height / width).log().mean()) < 0.03  # tall and wide ones alike
    assert share.min() < 0.22
    assert share.max() > 0.58
    assert (starts >= 0).all()
    assert (starts + sides <= SIDE).all()
    for start, side in zip(starts.T, sides.T, strict=True):
        room = side < SIDE
        where = start[room] / (SIDE - side[room])
        assert abs(where.mean() - 0.5) < 0.02
        assert where.min() == 0
        assert where.max() == 1


def test_boxes_of_extreme_ratios_still_have_their_area():
    """A ratio at which the box would not fit in is not drawn, so no area is cut down."""
    x = drawn(Erase(area=(0.9, 0.95), ratio=(0.1, 10.0)), torch.ones(500, 3, SIDE, SIDE))
    erased = (x == 0)[:, 0].float().mean((1, 2))
    assert erased.min() > 0.85
    assert erased.max() < 1.0


# erasing


def test_a_box_is_erased_and_nothing_else():
    x = pictures(2) + 1e-3
    found = augment.erase(x, torch.tensor([[3, 4, 5, 6], [0, 0, 1, 32]]))
    wanted = x.clone()
    wanted[0, :, 3:8, 4:10] = 0
    wanted[1, :, :1] = 0
    assert torch.equal(found, wanted)


def test_erased_areas_lie_in_the_range_asked_for():
    erased = (drawn(ERASE, torch.ones(4000, 3, SIDE, SIDE)) == 0)[:, 0]
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    area = erased.sum((1, 2))
    assert torch.equal(area, rows * columns)  # one whole rectangle each
    assert ((rows + 0.5) * (columns + 0.5) / SIDE**2 >= 0.02).all()
    assert ((rows - 0.5) * (columns - 0.5) / SIDE**2 <= 0.33).all()
    share = area / SIDE**2
    assert abs(share.mean() - 0.175) < 0.01
    assert share.min() < 0.03
    assert share.max() > 0.31


# colours


def test_flipped_twice_is_the_image():
    x = pictures(2)
    assert torch.equal(augment.flip(augment.flip(x)), x)
    assert torch.equal(augment.flip(x)[..., 0], x[..., -1])


def test_grey_is_the_brightness_in_all_channels():
    x = pictures(2)
    found = augment.grey(x)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    wanted = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(found[:, 0], wanted)


def test_brightness_contrast_and_saturation_by_hand():
    x, by = pictures(3), torch.tensor([0.3, 1.0, 1.7])
    grey, factor = augment.grey(x), by[:, None, None, None]
    wanted = {
        augment.brighten: factor * x,
        augment.contrast: factor * x + (1 - factor) * grey.mean((1, 2, 3), keepdim=True),
        augment.saturate: factor * x + (1 - factor) * grey,
    }
    for change, unclipped in wanted.items():
        torch.testing.assert_close(change(x, by), unclipped.clamp(0, 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(change(x, torch.ones(3)), x)
    torch.testing.assert_close(augment.saturate(x, torch.zeros(3)), grey)


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.2, 0.5, 1.0])
def test_hue_is_turned_as_the_standard_library_does(turns):
    x = pictures(2)
    x[0, :, 0, :4] = torch.tensor([[0.0, 1, 0.5, 1], [0, 1, 0.5, 0], [0, 1, 0.5, 0]])  # no hue; red
    found = augment.turn(x, torch.full((2,), turns))
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels])
    wanted = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in hsv]
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).reshape(-1, 3), wanted, atol=3e-6)


def test_a_full_turn_of_hue_is_the_image():
    x = pictures(4)
    torch.testing.assert_close(augment.turn(x, torch.ones(4)), x, atol=2e-6, rtol=0)
    assert (augment.turn(x, torch.full((4,), 0.5)) - x).abs().mean() > 0.1


def test_jitter_without_strength_or_chance_changes_nothing():
    x = pictures(8)
    torch.testing.assert_close(drawn(Jitter(0, 0, 0, 0, chance=1), x), x, atol=2e-6, rtol=0)
    assert torch.equal(drawn(Jitter(chance=0), x), x)


def test_jitter_draws_factors_around_one_and_turns_around_zero(monkeypatch):
    seen = {}

    def record(name):
        def change(x, by):
            seen.setdefault(name, []).append(by)
            return x

        return change

    for name in ("brighten", "contrast", "saturate", "turn"):
        monkeypatch.setattr(augment, name, record(name))
    drawn(Jitter(0.8, 0.5, 0.3, 0.2), torch.zeros(5000, 3, SIDE, SIDE))
    for name, middle, strength in (
        ("brighten", 1, 0.8), ("contrast", 1, 0.5), ("saturate", 1, 0.3), ("turn", 0, 0.2),
    ):  # fmt: skip
        by = torch.cat(seen[name])
        assert abs(len(by) / 5000 - 0.8) < 0.03  # the chance that an image is changed
        assert (by - middle).abs().max() <= strength + 1e-6
        assert by.min() < middle - 0.98 * strength
        assert by.max() > middle + 0.98 * strength
        assert abs(by.mean() - middle) < 0.04 * strength


def test_each_image_is_jittered_once_in_everything_in_an_order_of_its_own(monkeypatch):
    for digit, name in enumerate(("brighten", "contrast", "saturate", "turn"), 1):
        monkeypatch.setattr(augment, name, lambda x, by, digit=digit: 10 * x + digit)
    found = drawn(Jitter(chance=1), torch.zeros(2000, 3, SIDE, SIDE))[:, 0, 0, 0]
    orders, counts = np.unique(found.numpy(), return_counts=True)
    assert len(orders) == math.factorial(4)
    assert {"".join(sorted(str(int(order)))) for order in orders} == {"1234"}
    assert counts.min() > 40  # 83 are expected of each


# blur


def test_blur_is_a_convolution_by_hand():
    x, sigma = pictures(3), torch.tensor([0.1, 0.7, 2.0])
    found = augment.blur(x, sigma)
    for image, width, blurred in zip(x, sigma, found, strict=True):
        line = torch.exp(-(torch.tensor([-1.0, 0, 1]) ** 2) / (2 * width**2))
        kernel = line.outer(line) / line.outer(line).sum()
        padded = F.pad(image[:, None], (1, 1, 1, 1), mode="reflect")
        wanted = F.conv2d(padded, kernel[None, None])[:, 0]
        torch.testing.assert_close(blurred, wanted, atol=2e-6, rtol=0)


def test_blur_leaves_what_is_constant():
    x = torch.full((2, 3, SIDE, SIDE), 0.37)
    torch.testing.assert_close(drawn(BLUR, x), x)


# all of them


@pytest.mark.parametrize("name", ["crop", "erase", "blur", "jitter"])
def test_every_image_has_parameters_of_its_own(name):
    x = pictures(1).expand(64, -1, -1, -1)
    augmentation = Jitter(chance=1) if name == "jitter" else EVERY[name]
    # the narrowest blurs are too weak to differ in float32
    assert len(drawn(augmentation, x).flatten(1).unique(dim=0)) > 55
    # what has the same parameters for all images does not pass
    shared = drawn(augmentation, x[:1]).expand(64, -1, -1, -1)
    assert len(shared.flatten(1).unique(dim=0)) == 1


@pytest.mark.parametrize(("name", "chance"), [("flip", 0.5), ("grey", 0.2), ("jitter", 0.8)])
def test_each_image_tosses_a_coin_of_its_own(name, chance):
    x = pictures(1).expand(2000, -1, -1, -1)
    changed = (drawn(EVERY[name], x) != x).flatten(1).any(1)
    assert abs(changed.float().mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)
    assert len(changed.int().diff().nonzero()) > 1


@pytest.mark.parametrize("name", EVERY)
def test_values_stay_in_their_range_and_images_as_they_were(name):
    x = torch.cat([pictures(100), torch.zeros(4, 3, SIDE, SIDE), torch.ones(4, 3, SIDE, SIDE)])
    before = x.clone()
    found = drawn(EVERY[name], x)
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_bits(name):
    x = pictures(50)
    one, again, other = (drawn(EVERY[name], x, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_regimes_are_those_of_the_paper():
    kinds = {name: {type(a).__name__ for a in regime} for name, regime in REGIMES.items()}
    everything = {type(a).__name__ for a in EVERY.values()}
    assert kinds["all"] == everything
    assert kinds["crop"] == {"Crop"}
    assert kinds["no crop"] == everything - {"Crop"}
    assert kinds["no flip"] == everything - {"Flip"}


# views


def changed(views, x):
    """Return the share of images that each view has changed."""
    return [(view != x).flatten(1).any(1).float().mean().item() for view in views]


def test_both_views_are_augmented_and_differ():
    x = pictures(40)
    with Rng(0).scope("views"):
        one, two = two_views(x, [ERASE])
    assert changed((one, two), x) == [1.0, 1.0]
    assert changed((one,), two) == [1.0]
    with Rng(0).scope("views"):
        assert changed((ERASE(x), x), x) == [1.0, 0.0]  # as in the published code: one view alone


def test_views_are_of_the_same_image():
    x = torch.arange(20)[:, None, None, None].expand(20, 3, SIDE, SIDE) / 20
    with Rng(0).scope("views"):
        for view in two_views(x, [CROP, FLIP, BLUR]):
            torch.testing.assert_close(view, x)
