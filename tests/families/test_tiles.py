"""Encoding and decoding in a memory that is too small: picture by picture, then in tiles, and nearly the same."""

import pytest
import torch
from torch import Tensor

from backend.families.base import load_model
from backend.workspace import PROJECT

SIDE = 512


class Memory:
    """Stands in for a GPU: the VAE's encoder and decoder run out of memory above so many pixels of a batch."""

    def __init__(self, vae, monkeypatch) -> None:
        self.most, self.seen = 10**9, []
        self.grid = 2 ** (len(vae.config.block_out_channels) - 1)
        for name, scale in (("encoder", 1), ("decoder", self.grid)):
            part = getattr(vae, name)
            monkeypatch.setattr(part, "forward", self.bounded(part.forward, scale))

    def bounded(self, forward, scale: int):
        def run(batch: Tensor, *rest: object) -> Tensor:
            pixels = batch.shape[0] * batch.shape[2] * batch.shape[3] * scale**2
            self.seen.append((len(batch), batch.shape[2] * scale, batch.shape[3] * scale))
            if pixels > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")
            return forward(batch, *rest)

        return run


@pytest.fixture(scope="module")
def demo():
    return load_model(PROJECT / "backend/demo/model")


@pytest.fixture
def memory(demo, monkeypatch):
    yield Memory(demo.vae, monkeypatch)
    demo.vae.disable_tiling()


@pytest.fixture(scope="module")
def pictures(demo) -> Tensor:
    """Two pictures [2, 3, 512, 384] of a pattern that comes again and again: every tile has the same statistics."""
    down, across = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE * 3 // 4), indexing="ij")
    turns = torch.pi / 32
    one = torch.stack([torch.sin(turns * across), torch.cos(turns * down), torch.sin(turns * (across + 2 * down))])
    return torch.stack([one, one.flip(1)])


@pytest.fixture(scope="module")
def whole(demo, pictures) -> tuple[Tensor, Tensor]:
    """Latents and the pictures that are decoded from them, with room for all."""
    latents = demo.family.encode_images(demo, pictures)
    return latents, demo.family.decode_latents(demo, latents)


def test_a_batch_is_done_one_at_a_time_with_nothing_lost(demo, memory, pictures, whole, capsys) -> None:
    memory.most = SIDE * SIDE
    latents = demo.family.encode_images(demo, pictures)
    assert torch.allclose(latents, whole[0], atol=1e-5)
    assert torch.allclose(demo.family.decode_latents(demo, whole[0]), whole[1], atol=1e-4)
    assert not demo.vae.use_tiling and capsys.readouterr().out == ""


@pytest.mark.parametrize(("side", "most"), [(256, 0.1), (128, 0.3)])
def test_a_picture_that_is_too_large_is_done_in_tiles(demo, memory, pictures, whole, side, most, capsys) -> None:
    memory.most = side * side
    latents = demo.family.encode_images(demo, pictures)
    found = demo.family.decode_latents(demo, whole[0])
    assert demo.vae.use_tiling and demo.vae.tile_sample_min_size == side
    for own, other in ((latents, whole[0]), (found, whole[1])):
        assert own.shape == other.shape and torch.isfinite(own).all()
        # Their edges make a difference to the group norms, where a seam or a shift by a pixel would make a larger one.
        difference, shifted = ((one - other).abs().mean() / other.std() for one in (own, own.roll(1, 3)))
        assert difference < most and difference < shifted
    said = capsys.readouterr().out.strip().split("\n")
    assert len(said) == 1 and "in tiles" in said[0]


def test_what_is_drawn_at_random_is_the_same_after_another_attempt(demo, memory, pictures, whole) -> None:
    plain = demo.family.encode_images(demo, pictures, [torch.Generator().manual_seed(n) for n in (1, 2)])
    memory.most = SIDE * SIDE
    again = demo.family.encode_images(demo, pictures, [torch.Generator().manual_seed(n) for n in (1, 2)])
    assert torch.allclose(plain, again, atol=1e-5)


def test_a_memory_that_no_tile_fits_into_is_told(demo, memory, pictures) -> None:
    memory.most = 100
    with pytest.raises(torch.OutOfMemoryError):
        demo.family.encode_images(demo, pictures)
    with pytest.raises(torch.OutOfMemoryError):
        demo.family.decode_latents(demo, torch.zeros(1, demo.vae.config.latent_channels, 64, 64))


def test_pictures_that_fit_are_not_done_in_tiles(demo, memory, pictures) -> None:
    memory.most = 256 * 256
    demo.family.encode_images(demo, pictures[:1])
    memory.seen.clear()
    small = pictures[:, :, :256, :256]
    demo.family.encode_images(demo, small[:1])
    assert memory.seen == [(1, 256, 256)]
