"""Masks: from transparency or from pictures of the same name, cut and mirrored like the picture they belong to."""

import numpy as np
import pytest
import torch
from PIL import Image

from backend.data.cache import cache_latents
from backend.data.loader import PixelLoader
from backend.data.masks import latent_mask, stacked_masks
from backend.data.pictures import load_sample
from backend.errors import ConfigError, UserError

TOML = """
[[datasets]]
resolution = 64
batch_size = 2
  [[datasets.subsets]]
  image_dir = "train"
  num_repeats = 4
"""


def encode(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8)


@pytest.fixture
def paint(tmp_path):
    """paint("folder/name.png", array): a picture of these numbers."""

    def paint_one(name: str, pixels: np.ndarray) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)

    return paint_one


def rgba(alpha: np.ndarray) -> np.ndarray:
    colours = np.random.default_rng(0).integers(0, 256, (*alpha.shape, 3))
    return np.concatenate([colours, alpha[..., None]], axis=-1)


def test_each_latent_pixel_has_the_mean_of_its_area():
    mask = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    expected = torch.tensor(mask.reshape(2, 8, 3, 8).mean((1, 3)) / 255, dtype=torch.float32)[None]
    torch.testing.assert_close(latent_mask(mask), expected)
    assert torch.equal(latent_mask(np.full((16, 24), 255, np.uint8)), torch.ones(1, 2, 3))


def test_masks_of_pictures_without_one_are_ones():
    mask = torch.rand(1, 2, 3)
    assert stacked_masks([None, None]) is None
    assert torch.equal(stacked_masks([None, mask]), torch.stack([torch.ones(1, 2, 3), mask]))


def test_transparency_is_the_mask_and_white_the_ground(paint, scan):
    alpha = np.zeros((64, 64))
    alpha[:, :32], alpha[:, 32:48] = 255, 51
    paint("train/a.png", rgba(alpha))
    (picture,) = scan(TOML + "alpha_mask = true\n").pictures
    pixels, mask = load_sample(picture)
    assert (pixels[:, 48:] == 255).all()
    torch.testing.assert_close(mask[0], torch.tensor([1.0] * 4 + [0.2] * 2 + [0.0] * 2).expand(8, 8))
    assert torch.equal(load_sample(picture, flip=True)[1], mask.flip(-1))
    (plain,) = scan(TOML).pictures
    assert load_sample(plain)[1] is None and np.array_equal(load_sample(plain)[0], pixels)


def test_opaque_pictures_count_whole(draw, scan):
    draw("train/a.png")
    (picture,) = scan(TOML + "alpha_mask = true\n").pictures
    assert torch.equal(load_sample(picture)[1], torch.ones(1, 8, 8))


def test_masks_are_cut_like_their_pictures(paint, scan):
    """A mask that repeats the picture shows, after crop and flip, the picture's own numbers."""
    columns = np.indices((100, 120))[1] * 2
    paint("train/a.png", np.stack([columns] * 3, -1))
    paint("masks/a.png", np.stack([columns, 0 * columns, 0 * columns], -1))
    toml = TOML + 'conditioning_data_dir = "masks"\nrandom_crop = true\nflip_aug = true\n'
    items = [item for batch in scan(toml).epoch_batches(0, 0) for item in batch.items]
    assert len({(item.flip, item.crop) for item in items}) == 4
    for item in items:
        pixels, mask = load_sample(item.picture, item.flip, item.crop)
        assert torch.equal(mask, latent_mask(pixels[..., 0]))


def test_a_smaller_mask_of_the_same_shape_is_enlarged(paint, draw, scan):
    draw("train/a.png", (128, 64))
    small = np.zeros((32, 64, 3))
    small[:, :32, 0] = 255
    paint("masks/a.jpg", small)
    (picture,) = scan(TOML + 'conditioning_data_dir = "masks"\n').pictures
    mask = load_sample(picture)[1][0]
    assert mask[:, :3].min() > 0.95 and mask[:, 5:].max() < 0.05


def test_the_same_name_comes_before_the_same_stem(paint, draw, scan):
    for name, level in (("a.png", 255), ("a.bmp", 0)):
        draw(f"train/{name}")
        paint(f"masks/{name}", np.full((64, 64, 3), level))
    draw("train/b.png")
    paint("masks/b.bmp", np.full((64, 64, 3), 51))
    pictures = scan(TOML + 'conditioning_data_dir = "masks"\n').pictures
    means = {picture.path.name: float(load_sample(picture)[1].mean()) for picture in pictures}
    assert means == pytest.approx({"a.png": 1.0, "a.bmp": 0.0, "b.png": 0.2})


def test_what_is_wrong_with_masks_is_told_by_name(paint, draw, scan):
    draw("train/a.png")
    draw("train/b.png")
    toml = TOML + 'conditioning_data_dir = "masks"\n'
    with pytest.raises(UserError, match="conditioning_data_dir: there is no folder masks"):
        scan(toml)
    paint("masks/a.png", np.zeros((64, 64, 3)))
    with pytest.raises(UserError, match=r"conditioning_data_dir: masks has no mask for b\.png"):
        scan(toml)
    paint("masks/b.png", np.zeros((64, 60, 3)))
    with pytest.raises(UserError, match=r"the mask masks/b\.png is 60x64, its picture 64x64"):
        scan(toml)
    with pytest.raises(ConfigError, match="alpha_mask: does not go with conditioning_data_dir"):
        scan(toml + "alpha_mask = true\n")


def test_cached_masks_are_those_that_workers_load(paint, draw, scan):
    """Also where only some pictures have one, mirrored or not."""
    levels = np.indices((64, 64))[1] * 4
    paint("train/a.png", rgba(levels))
    draw("train/b.png")
    draw("plain/c.png")
    found = scan(
        TOML + 'alpha_mask = true\nflip_aug = true\n[[datasets.subsets]]\nimage_dir = "plain"\nnum_repeats = 4\n'
    )
    cache = cache_latents(found, encode)
    batches = found.epoch_batches(0, 0)
    loaded = [list(PixelLoader(workers).epoch(batches)) for workers in (0, 2)]
    flips = set()
    for batch, here, there in zip(batches, *loaded, strict=True):
        _, masks = cache.batch(batch)
        for _, pixels, others in (here, there):
            assert masks is others is None or torch.equal(masks, others)
            assert torch.equal(encode(pixels), cache.batch(batch)[0])
        for item in batch.items:
            assert cache.entry(item.picture, item.flip).mask is None or item.picture.alpha_mask
        flips |= {item.flip for item in batch.items if item.picture.path.name == "a.png"}
    assert flips == {False, True}
    assert any(
        masks is not None and any(not item.picture.masked for item in batch.items) for batch, _, masks in loaded[0]
    )
