"""Every option of training changes what it should and nothing else: the table of proofs.py, run row by row."""

import ast
from pathlib import Path

import pytest

from backend.config.base import leaves
from backend.config.dataset import DATASET_KEYS, SUBSET_KEYS
from backend.config.train import TrainNetwork
from tests.train.proofs import PROOFS
from tests.train.traces import ASPECTS

ROOT = Path(__file__).parents[2]
DATASET = "dataset."


def rows() -> list[str]:
    return [name for name, proof in PROOFS.items() if not proof.shown_by]


def test_every_option_has_a_row() -> None:
    wanted = {*leaves(TrainNetwork), *(DATASET + name for name in (*DATASET_KEYS, *SUBSET_KEYS))}
    assert sorted(wanted - PROOFS.keys()) == [] and sorted(PROOFS.keys() - wanted) == []


def test_every_test_that_stands_for_a_row_exists() -> None:
    missing = []
    for name, proof in PROOFS.items():
        if proof.shown_by:
            file, _, function = proof.shown_by.partition("::")
            path = ROOT / file
            found = path.is_file() and {
                node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
            }
            if not found or function not in found or not function.startswith("test_"):
                missing.append((name, proof.shown_by))
    assert not missing


@pytest.mark.parametrize("name", rows())
def test_an_option_changes_what_it_should_and_nothing_else(name, traced) -> None:
    proof = PROOFS[name]
    assert set(proof.changes.split()) <= set(ASPECTS)
    before, after = traced(proof.base), traced({**proof.base, **proof.options})
    changed = [aspect for aspect in ASPECTS if before[aspect] != after[aspect]]
    assert " ".join(changed) == " ".join(sorted(proof.changes.split(), key=ASPECTS.index))
