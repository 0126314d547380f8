"""The generate worker, which lives through models of every size, takes the threads that suit each."""

import io

import pytest
import torch

from backend.generate import worker as module
from backend.generate.worker import Worker
from backend.threads import NUMBER, Processors


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Sizes of models -> the numbers of threads that torch was asked for."""
    found: list[int] = []
    monkeypatch.setattr(module.threads, "find", lambda: Processors(6, 6))
    monkeypatch.setattr(module, "load_generation_model", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    for name in NUMBER:
        monkeypatch.delenv(name, raising=False)

    def load(*sizes: int) -> list[int]:
        worker = Worker(io.StringIO())
        worker.device = torch.device("cpu")
        for size in sizes:
            path = tmp_path / f"{size}.safetensors"
            with path.open("wb") as file:
                file.truncate(size)
            worker.load({"model": str(path)})
        return found

    return load


def test_threads_follow_the_model(asked) -> None:
    assert asked(10_000_000, 4_000_000_000, 20_000_000) == [1, 6, 1]


def test_a_number_that_the_user_has_set_stays(asked, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert asked(10_000_000, 4_000_000_000) == []
