"""Draws are pure functions of what they are for."""

import itertools
import subprocess
import sys

from backend.draws import draw_key, rng


def test_the_key_is_fixed_for_all_time_and_machines():
    """Golden numbers: BLAKE2b of the parts' repr, so that a run of today can be resumed on another machine."""
    assert draw_key(42, "noise", 3, 1) == GOLDEN_NOISE
    assert draw_key(-1, "flip") == GOLDEN_FLIP


def test_the_key_does_not_hang_on_hash_randomisation():
    code = "from backend.draws import draw_key; print(draw_key(42, 'noise', 3, 1))"
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(out.stdout) == GOLDEN_NOISE


def test_every_part_matters_and_boundaries_count():
    calls = [
        (1, "a"),
        (2, "a"),
        (1, "b"),
        (1, "a", 0),
        (1, "a", 1),
        (1, "a", 0, 1),
        (1, "a", 1, 0),
        (1, "a", 10),
        (1, "a1", 0),
    ]
    assert len({draw_key(*call) for call in calls}) == len(calls)


def test_keys_fill_63_bits():
    keys = [draw_key(0, "bits", i) for i in range(512)]
    assert all(0 <= key < 2**63 for key in keys)
    assert all(150 < sum(key >> bit & 1 for key in keys) < 362 for bit in range(63))


def test_rng_is_fresh_each_time_and_differs_by_index():
    assert rng(1, "order", 2).random() == rng(1, "order", 2).random()
    values = [rng(1, "order", i).random() for i in range(1000)]
    assert abs(sum(values) / 1000 - 0.5) < 0.03
    products = [(a - 0.5) * (b - 0.5) for a, b in itertools.pairwise(values)]
    assert abs(sum(products) / len(products)) < 0.01, "neighbouring indices are correlated"


GOLDEN_NOISE = 366359431788802790
GOLDEN_FLIP = 879725361069286174
