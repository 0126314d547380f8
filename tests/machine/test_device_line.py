"""What a run's log says of the GPU, beside stand-ins for what torch reports."""

from types import SimpleNamespace

import pytest
import torch

from backend import gpus
from backend.generate.attention import set_attention
from backend.generate.device import device_line
from backend.gpus import Verdict
from backend.lean import loadable

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
OLD = "The GPU is not used (NVIDIA A10, 22 GB): torch is built for CUDA 13.0; start ./webui.sh again"


@pytest.fixture
def machine(monkeypatch):
    """machine(verdict, seen): a machine of which the files say this, and which torch sees or not."""

    def make(verdict: Verdict, seen: bool = False, reason: str = "") -> None:
        def refuse() -> None:
            if reason:
                raise RuntimeError(reason)

        monkeypatch.setattr(gpus, "verdict", lambda: verdict)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
        monkeypatch.setattr(torch.cuda, "init", refuse)

    return make


def test_the_gpu_is_told_as_torch_reports_it(monkeypatch) -> None:
    found = SimpleNamespace(name="NVIDIA H200 MIG 1g.18gb", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_line(CUDA) == "GPU: NVIDIA H200 MIG 1g.18gb, 16 GB"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_line(CUDA).endswith("16 GB (4 are here)")


def test_nothing_is_told_where_there_is_none(machine) -> None:
    machine(Verdict("No GPU was found", False, False))
    assert device_line(CPU) == ""


def test_why_the_one_that_is_there_is_not_used(machine) -> None:
    machine(Verdict(OLD, True, False))
    assert device_line(CPU) == OLD


def test_what_only_torch_knows_is_told_in_its_words(machine) -> None:
    machine(Verdict("GPU: NVIDIA A10, 22 GB", True, True), False, "CUDA error: out of memory\nCompile with ...")
    line = device_line(CPU)
    assert "A10, 22 GB" in line and "CUDA error: out of memory" in line and "\n" not in line
    machine(Verdict("GPU: NVIDIA A10, 22 GB", True, True), True)
    assert "as was asked for" in device_line(CPU)


def test_a_run_says_it_before_all_else(machine, capsys) -> None:
    from backend.config.training.speed import Speed
    from backend.train.device import make_accelerator

    machine(Verdict(OLD, True, False))
    make_accelerator(Speed())
    assert capsys.readouterr().out.split("\n")[0] == OLD


@pytest.mark.parametrize(
    "error",
    [
        OSError("libcudart.so.12: cannot open"),
        AttributeError("no such operator"),
        NotImplementedError("No operator found for `x` with inputs:\n     query: ..."),
    ],
)
def test_an_xformers_that_does_not_load_is_one_line(error) -> None:
    chosen = []

    def refuse() -> None:
        raise error

    unet = SimpleNamespace(enable_xformers_memory_efficient_attention=refuse, set_attn_processor=chosen.append)
    line = set_attention(unet, True, False, CUDA)
    assert line.startswith("xformers needs") and "PyTorch's attention" in line and "\n" not in line
    assert len(chosen) == 1 and str(error).split("\n")[0].rstrip(":") in line


def test_a_package_that_breaks_while_it_is_imported_is_as_good_as_none(tmp_path, monkeypatch) -> None:
    (tmp_path / "loom_broken").mkdir()
    (tmp_path / "loom_broken/__init__.py").write_text("import loom_broken.inner\nraise OSError('libcudart.so.12')\n")
    (tmp_path / "loom_broken/inner.py").write_text("")
    (tmp_path / "loom_whole.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert loadable(["loom_broken", "loom_whole", "loom_none"]) == {"loom_whole"}
    import sys

    assert not [name for name in sys.modules if name.startswith("loom_broken")]
