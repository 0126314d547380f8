"""Batches: a pure function of (seed, epoch), one bucket each, split over processes without loss."""

from collections import Counter
from dataclasses import replace

import pytest

from backend.data.batches import Pace
from backend.data.captions import Moment

TOML = """
[general]
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
[[datasets]]
resolution = 64
batch_size = BATCH
  [[datasets.subsets]]
  image_dir = "train"
  num_repeats = 3
  flip_aug = true
  shuffle_caption = true
"""


@pytest.fixture
def training_set(draw, scan):
    """7 wide and 4 square pictures, 3 times each, in batches of 4."""

    def make(batch: int = 4, extra: str = ""):
        for i in range(7):
            draw(f"train/wide{i}.png", (128, 64), "a, b, c, d")
        for i in range(4):
            draw(f"train/square{i}.png", (64, 64), "a, b, c, d")
        return scan(TOML.replace("BATCH", str(batch)) + extra)

    return make


def test_same_seed_and_epoch_give_the_same_batches_and_others_do_not(training_set):
    found = training_set()
    first = found.epoch_batches(1, 0)
    assert first == found.epoch_batches(1, 0)
    for other in (found.epoch_batches(1, 1), found.epoch_batches(2, 0)):
        assert [b.items for b in other] != [b.items for b in first]


def test_pictures_meet_others_in_each_epoch(training_set):
    found = training_set()
    first, second = ({frozenset(i.index_in_epoch for i in b.items) for b in found.epoch_batches(1, e)} for e in (0, 1))
    assert len(first & second) < 3


def test_every_picture_appears_as_often_as_it_repeats(training_set):
    found = training_set()
    for epoch in range(3):
        items = [item for batch in found.epoch_batches(1, epoch) for item in batch.items]
        assert set(Counter(item.picture.path for item in items).values()) == {3}
        assert sorted(item.index_in_epoch for item in items) == list(range(33))


def test_a_batch_is_of_one_bucket_and_only_the_last_of_a_bucket_is_short(training_set):
    batches = training_set().epoch_batches(5, 0)
    assert all(item.picture.bucket == batch.bucket for batch in batches for item in batch.items)
    assert all(batch.global_size == len(batch.items) and batch.offset == 0 for batch in batches)
    sizes = {
        bucket: sorted(len(b.items) for b in batches if b.bucket == bucket) for bucket in {b.bucket for b in batches}
    }
    assert sizes == {(80, 48): [1, 4, 4, 4, 4, 4], (64, 64): [4, 4, 4]}


def test_buckets_are_mixed(training_set):
    """Over some epochs, neither bucket always comes first and a short batch is not always the last."""
    found = training_set()
    epochs = [found.epoch_batches(0, epoch) for epoch in range(12)]
    assert {batches[0].bucket for batches in epochs} == {(80, 48), (64, 64)}
    assert len({[len(b.items) for b in batches].index(1) for batches in epochs}) > 3


def test_batch_count_is_known_without_dealing(training_set):
    found = training_set()
    for world_size in (1, 2, 3):
        together = replace(found, processes=world_size)
        assert {len(together.epoch_batches(0, e)) for e in range(4)} == {together.batches_per_epoch()}
    assert found.batches_per_epoch() == 9


def test_two_processes_of_batch_two_see_what_one_of_batch_four_sees(training_set):
    alone = training_set(batch=4).epoch_batches(3, 2)
    together = replace(training_set(batch=2), processes=2).epoch_batches(3, 2)
    # Repeats and options are the same; only the recorded batch size differs.
    assert [(b.bucket, b.items) for b in alone] == [(b.bucket, b.items) for b in together]
    for batch in together:
        shares = [batch.shard(rank, 2) for rank in range(2)]
        assert shares[0].items + shares[1].items == batch.items
        assert [share.offset for share in shares] == [0, len(shares[0].items)]
        assert {share.global_size for share in shares} == {batch.global_size}


@pytest.mark.parametrize(
    "size, world, expected", [(4, 2, [2, 2]), (5, 2, [3, 2]), (2, 3, [1, 1, 0]), (7, 3, [3, 2, 2])]
)
def test_shares_are_contiguous_and_nearly_equal(training_set, size, world, expected):
    batch = next(b for b in training_set(batch=8).epoch_batches(0, 0) if len(b.items) == 8)
    batch = replace(batch, items=batch.items[:size], global_size=size)
    shares = [batch.shard(rank, world) for rank in range(world)]
    assert [len(share.items) for share in shares] == expected
    assert sum((share.items for share in shares), ()) == batch.items
    assert [share.offset for share in shares] == [sum(expected[:rank]) for rank in range(world)]


def test_a_rank_outside_the_world_is_refused(training_set):
    with pytest.raises(ValueError, match="rank 2"):
        training_set().epoch_batches(0, 0)[0].shard(2, 2)


def test_draws_hang_on_the_item_not_on_the_batch_size(training_set):
    def draws(batch: int):
        items = [item for b in training_set(batch).epoch_batches(9, 1) for item in b.items]
        return {item.index_in_epoch: (item.picture.path, item.flip, item.caption) for item in items}

    assert draws(1) == draws(4)


def test_flips_are_fair_and_differ_between_repeats_and_epochs(training_set):
    found = training_set()
    flips = {
        (epoch, item.index_in_epoch): item.flip
        for epoch in range(30)
        for batch in found.epoch_batches(0, epoch)
        for item in batch.items
    }
    assert 0.45 < sum(flips.values()) / len(flips) < 0.55
    assert any(flips[0, i] != flips[1, i] for i in range(33))
    assert any(flips[0, 3 * i] != flips[0, 3 * i + 1] for i in range(11))


def test_captions_are_shuffled_anew_for_every_sample(training_set):
    captions = [item.caption for batch in training_set().epoch_batches(0, 0) for item in batch.items]
    assert {frozenset(caption.split(", ")) for caption in captions} == {frozenset("abcd")}
    assert len(set(captions)) > 10


def test_without_flip_aug_nothing_is_mirrored(draw, scan):
    for i in range(20):
        draw(f"train/{i}.png", caption="a")
    found = scan(TOML.replace("BATCH", "4").replace("flip_aug = true", ""))
    assert not any(item.flip for batch in found.epoch_batches(0, 0) for item in batch.items)


def test_datasets_keep_their_own_resolution_batch_size_and_options(training_set):
    extra = "[[datasets]]\nresolution = 32\nbatch_size = 2\nenable_bucket = false\n"
    extra += '[[datasets.subsets]]\nimage_dir = "train"\n'
    batches = training_set(4, extra).epoch_batches(0, 0)
    small = [b for b in batches if b.bucket == (32, 32)]
    assert sorted(len(b.items) for b in small) == [1, 2, 2, 2, 2, 2]
    assert {item.caption for b in small for item in b.items} == {"a, b, c, d"}
    assert {len(b.items) for b in batches if b.bucket == (64, 64)} == {4}


def test_subsets_keep_their_own_options(draw, training_set):
    draw("plain/a.png", (64, 64), "d, c, b, a")
    batches = training_set(4, '[[datasets.subsets]]\nimage_dir = "plain"\ncaption_prefix = "zqx"\n').epoch_batches(0, 0)
    items = [item for batch in batches for item in batch.items]
    assert [(i.caption, i.flip) for i in items if i.picture.path.parent.name == "plain"] == [("zqx d, c, b, a", False)]
    assert not any("zqx" in i.caption for i in items if i.picture.path.parent.name == "train")


def test_regularisation_samples_are_marked(draw, scan):
    draw("train/a.png", caption="a")
    draw("reg/x.png", caption="x")
    toml = TOML.replace("BATCH", "2") + '[[datasets.subsets]]\nimage_dir = "reg"\nis_reg = true\n'
    items = [item for batch in scan(toml).epoch_batches(0, 0) for item in batch.items]
    assert Counter((item.picture.path.name, item.picture.is_reg) for item in items) == {
        ("a.png", False): 3,
        ("x.png", True): 3,
    }


def test_the_step_of_a_batch_follows_from_epoch_position_and_accumulation():
    pace = Pace(accumulation=4, total_steps=50)
    # Nine batches are three steps, the last of one batch.
    assert [pace.moment(0, position, 9).step for position in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [pace.moment(2, position, 9) for position in (0, 8)] == [Moment(2, 6, 50), Moment(2, 8, 50)]


def test_captions_grow_with_the_step_and_go_with_the_epoch(training_set):
    found = training_set()
    subset = (
        found.datasets[0]
        .subsets[0]
        .model_copy(update={"token_warmup_step": 0.5, "caption_dropout_every_n_epochs": 3, "shuffle_caption": False})
    )
    options = found.datasets[0].model_copy(update={"subsets": (subset,)})
    # 9 batches are 5 steps of two; half of 16 steps is 8.
    found = replace(found, datasets=(options,), pace=Pace(accumulation=2, total_steps=16))
    whole = ["a", "a, b", "a, b, c", "a, b, c, d"]
    for epoch in range(4):
        for position, batch in enumerate(found.epoch_batches(1, epoch)):
            step = epoch * 5 + position // 2
            expected = "" if epoch == 2 else whole[min(step, 8) * 3 // 8]
            assert {item.caption for item in batch.items} == {expected}


def test_a_batch_has_the_multiplier_of_its_dataset(training_set):
    extra = "[[datasets]]\nresolution = 64\nnetwork_multiplier = -0.5\n[[datasets.subsets]]\nimage_dir = 'train'\n"
    batches = training_set(4, extra).epoch_batches(0, 0)
    assert {(b.items[0].picture.dataset, b.multiplier, b.shard(0, 2).multiplier) for b in batches} == {
        (0, 1.0, 1.0),
        (1, -0.5, -0.5),
    }
