"""The loader of uncached training: pixels in order, whatever the number of workers."""

import os
from multiprocessing import active_children

import pytest
import torch

from backend.data.loader import PixelLoader
from backend.data.pictures import load_pixels
from backend.errors import UserError

TOML = """
[[datasets]]
resolution = 32
enable_bucket = true
min_bucket_reso = 16
max_bucket_reso = 64
bucket_reso_steps = 16
batch_size = 2
  [[datasets.subsets]]
  image_dir = "train"
  flip_aug = true
"""


@pytest.fixture
def training_set(draw, scan):
    for i in range(7):
        draw(f"train/{i}.png", (64, 32) if i % 2 else (32, 32), "a", value=30 * i)
    return scan(TOML)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_come_in_order_with_their_flips(training_set, workers):
    loader = PixelLoader(workers)
    for epoch in range(2):
        batches = training_set.epoch_batches(0, epoch)
        loaded = list(loader.epoch(batches))
        assert [batch for batch, _, _ in loaded] == batches
        for batch, pixels, masks in loaded:
            assert masks is None
            assert torch.equal(pixels, torch.stack([load_pixels(i.picture, i.flip) for i in batch.items]))


def workers_of_an_epoch(loader: PixelLoader, batches) -> set[int]:
    pixels = loader.epoch(batches)
    next(pixels)
    pids = {child.pid for child in active_children()}
    list(pixels)
    return pids


@pytest.mark.parametrize("persistent", [True, False])
def test_persistent_workers_outlive_an_epoch(training_set, persistent):
    loader = PixelLoader(2, persistent)
    first, second = (workers_of_an_epoch(loader, training_set.epoch_batches(0, epoch)) for epoch in range(2))
    assert len(first) == len(second) == 2 and os.getpid() not in first
    assert (first == second) is persistent


def test_an_epoch_may_begin_in_the_middle_and_end_early(training_set):
    loader = PixelLoader(2, persistent=True)
    batches = training_set.epoch_batches(0, 0)
    next(loader.epoch(batches))
    assert [batch for batch, _, _ in loader.epoch(batches[2:])] == batches[2:]


def test_no_workers_means_none(training_set):
    assert workers_of_an_epoch(PixelLoader(0, persistent=True), training_set.epoch_batches(0, 0)) == set()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_gone_is_one_clear_line(training_set, workers):
    training_set.pictures[3].path.unlink()
    with pytest.raises(UserError, match=r"cannot decode .*3\.png \(No such file") as caught:
        list(PixelLoader(workers).epoch(training_set.epoch_batches(0, 0)))
    assert "\n" not in str(caught.value)


def test_an_empty_share_has_no_pixels(training_set):
    share = training_set.epoch_batches(0, 0)[0].shard(2, 3)
    ((batch, pixels, _),) = PixelLoader(0).epoch([share])
    assert batch is share and pixels.shape[0] == 0 and pixels.shape[1] == 3


def test_the_loader_leaves_torchs_generator_alone(training_set):
    before = torch.random.get_rng_state()
    list(PixelLoader(0).epoch(training_set.epoch_batches(0, 0)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_workers_are_out_of_reach_of_signals_to_the_runs_group(training_set):
    """`timeout` and a terminal's Ctrl-C signal the whole group; the run has to finish its step."""
    loader = PixelLoader(1, persistent=True)
    stream = loader.epoch(training_set.epoch_batches(0, 0))
    next(stream)
    workers = [child.pid for child in active_children()]
    assert workers and all(os.getpgid(pid) != os.getpgrp() for pid in workers)
    list(stream)


def test_workers_are_copies_on_every_python() -> None:
    """Python 3.14 starts processes afresh, each of which would import torch again."""
    import sys

    from backend.data.loader import PixelLoader

    context = PixelLoader(num_workers=1)._loader.multiprocessing_context
    assert sys.platform != "linux" or context.get_start_method() == "fork"
    assert PixelLoader(num_workers=0)._loader.multiprocessing_context is None
