"""The latent cache holds what the encoder gives, for each picture and flip, encoded once."""

import threading
import tracemalloc

import pytest
import torch

from backend.data import cache as cache_module
from backend.data.cache import cache_latents
from backend.data.pictures import load_pixels, load_sample

TOML = """
[[datasets]]
resolution = 64
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
batch_size = 2
  [[datasets.subsets]]
  image_dir = "train"
  num_repeats = 2
  flip_aug = true
  [[datasets.subsets]]
  image_dir = "plain"
"""


class Encoder:
    """Pools pixels by eight, and notes the batches it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.shapes.append(tuple(pixels.shape))
        return torch.nn.functional.avg_pool2d(pixels, 8)


@pytest.fixture
def training_set(draw, scan):
    for i in range(5):
        draw(f"train/{i}.png", (64, 64), "a", value=20 * i)
    draw("train/wide.png", (128, 64), "a")
    draw("plain/x.png", (64, 64), "a", value=200)
    return scan(TOML)


def test_latents_are_the_encoders_for_every_picture_and_flip(training_set):
    cache = cache_latents(training_set, Encoder(), batch_size=2)
    for picture in training_set.pictures:
        for flip in (False, True) if picture.flip_aug else (False,):
            expected = torch.nn.functional.avg_pool2d(load_pixels(picture, flip)[None], 8)[0]
            assert torch.equal(cache.get(picture, flip), expected)
    assert len(cache) == 13


def test_only_subsets_with_flip_aug_are_mirrored(training_set):
    plain = training_set.pictures[-1]
    with pytest.raises(KeyError):
        cache_latents(training_set, Encoder()).get(plain, True)


def test_batches_are_of_one_bucket_and_at_most_the_size_asked_for(training_set):
    encoder = Encoder()
    cache_latents(training_set, encoder, batch_size=4)
    assert sorted(encoder.shapes) == sorted(
        [(4, 3, 64, 64), (4, 3, 64, 64), (2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 48, 80), (1, 3, 48, 80)]
    )


def test_the_batch_size_changes_no_latent(training_set):
    one, many = (cache_latents(training_set, Encoder(), batch_size=size) for size in (1, 3))
    assert all(torch.equal(one.get(p), many.get(p)) for p in training_set.pictures)


def test_latents_are_on_the_cpu_in_the_dtype_asked_for_and_hold_no_batch(training_set):
    for dtype in (torch.float32, torch.float16):
        cache = cache_latents(training_set, Encoder(), 4, dtype=dtype)
        latent = cache.get(training_set.pictures[0])
        assert latent.dtype == dtype and latent.device.type == "cpu"
        assert latent.untyped_storage().nbytes() == latent.numel() * latent.element_size()


def test_progress_counts_up_to_the_number_of_pictures(training_set):
    seen = []
    cache_latents(training_set, Encoder(), 2, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (7, 7) and {total for _, total in seen} == {7}


def test_a_batch_stacks_the_latents_of_its_items(training_set):
    cache = cache_latents(training_set, Encoder())
    for batch in training_set.epoch_batches(0, 0):
        stacked, masks = cache.batch(batch)
        assert masks is None
        for row, item in zip(stacked, batch.items, strict=True):
            assert torch.equal(row, cache.get(item.picture, item.flip))


def test_the_same_file_at_two_sizes_has_two_latents(draw, scan):
    draw("train/a.png", (64, 64), "a")
    one = '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "train"\n'
    found = scan(one + one.replace("64", "32"))
    cache = cache_latents(found, Encoder())
    assert [tuple(cache.get(p).shape) for p in found.pictures] == [(3, 8, 8), (3, 4, 4)]


def test_same_stem_different_extension_do_not_share_a_latent(draw, scan):
    draw("train/a.png", caption="a", value=0)
    draw("train/a.bmp", caption="a", value=200)
    found = scan('[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "train"\n')
    cache = cache_latents(found, Encoder())
    assert not torch.equal(*(cache.get(p) for p in found.pictures))


def test_pictures_are_decoded_in_other_threads_while_the_encoder_works(training_set, monkeypatch):
    """The encoder waits, inside its first call, for a picture of a later batch to be decoded."""
    decoded, threads = [], set()
    second = threading.Event()

    def load(picture):
        threads.add(threading.get_ident())
        decoded.append(picture)
        if len(decoded) > 1:
            second.set()
        return load_sample(picture)

    def encode(pixels):
        assert second.wait(10), "nothing was decoded ahead"
        return Encoder()(pixels)

    monkeypatch.setattr(cache_module, "load_sample", load)
    cache_latents(training_set, encode, batch_size=1)
    assert threading.get_ident() not in threads


def test_all_threads_decode_even_in_batches_of_one(draw, scan, monkeypatch):
    """Three pictures must be in decoding at the same time before any of them is done."""
    for i in range(6):
        draw(f"train/{i}.png", (16, 16), "a")
    found = scan('[[datasets]]\nresolution = 16\n[[datasets.subsets]]\nimage_dir = "train"\n')
    together = threading.Barrier(3)

    def load(picture):
        together.wait(10)
        return load_sample(picture)

    monkeypatch.setattr(cache_module, "cpu_count", lambda: 3)
    monkeypatch.setattr(cache_module, "load_sample", load)
    assert len(cache_latents(found, Encoder(), batch_size=1)) == 6


def test_decoding_stays_a_few_batches_ahead(draw, scan, monkeypatch):
    """Memory is flat: when the encoder has seen n batches of 4, only a bounded number of pictures more are decoded."""
    for i in range(60):
        draw(f"train/{i}.png", (16, 16), "a")
    found = scan('[[datasets]]\nresolution = 16\n[[datasets.subsets]]\nimage_dir = "train"\n')
    decoded, lead = [], []
    monkeypatch.setattr(cache_module, "cpu_count", lambda: 4)
    monkeypatch.setattr(cache_module, "load_sample", lambda p: decoded.append(p) or load_sample(p))

    def encode(pixels):
        threading.Event().wait(0.01)
        lead.append(len(decoded) - 4 * len(lead))
        return Encoder()(pixels)

    cache_latents(found, encode, batch_size=4)
    assert len(lead) == 15 and max(lead) <= 12


def test_memory_stays_flat_over_a_thousand_samples(draw, scan):
    """An epoch of 1,000 samples holds records, not pixels: well under the 12 MB of one of its batches of pictures."""
    draw("train/a.png", (64, 64), "a")
    found = scan(
        "[[datasets]]\nresolution = 512\nbatch_size = 4\n"
        '[[datasets.subsets]]\nimage_dir = "train"\nnum_repeats = 1000\n'
    )
    tracemalloc.start()
    batches = found.epoch_batches(0, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batches) == 250 and peak < 4e6


def test_a_failing_encoder_ends_the_caching(training_set):
    def encode(pixels):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache_latents(training_set, encode)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_encoders_give_what_one_gives_in_the_same_order(training_set, batch_size):
    told, threads = [], torch.get_num_threads()
    one = cache_latents(training_set, Encoder(), batch_size)
    many = cache_latents(training_set, Encoder(), batch_size, lambda *done: told.append(done), workers=3)
    assert torch.get_num_threads() == threads and len(one) == len(many)
    for picture in training_set.pictures:
        for flip in (False, True)[: 1 + picture.flip_aug]:
            assert torch.equal(one.get(picture, flip), many.get(picture, flip))
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_encoders_work_side_by_side_where_pictures_are_small(draw, scan, monkeypatch):
    """Two batches are in the encoder at the same time, and never two large ones."""
    for i in range(4):
        draw(f"train/{i}.png", (16, 16), "a")
    found = scan('[[datasets]]\nresolution = 16\n[[datasets.subsets]]\nimage_dir = "train"\n')
    together = threading.Barrier(2)

    def encode(pixels):
        together.wait(10)
        return Encoder()(pixels)

    cache_latents(found, encode, workers=2)
    monkeypatch.setattr(cache_module, "PIXELS_AT_ONCE", 16 * 16)
    names = set()

    def alone(pixels):
        names.add(threading.get_ident())
        return Encoder()(pixels)

    cache_latents(found, alone, workers=2)
    assert names == {threading.get_ident()}


def test_an_encoder_that_fails_beside_others_ends_the_caching(training_set):
    def encode(pixels):
        raise RuntimeError("out of paint")

    with pytest.raises(RuntimeError, match="out of paint"):
        cache_latents(training_set, encode, workers=3)
