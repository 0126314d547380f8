"""A config names code of installed packages alone: nothing that lies about is imported, and so nothing of it runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from backend import installed
from backend.config.base import problems
from backend.config.train import TrainNetwork
from backend.installed import NotInstalledError, import_installed, refuse_elsewhere
from backend.workspace import PROJECT

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "o"}
# A module that would tell on itself, with a class that would do.
EVIL = 'open("it-ran", "w").close()\nimport torch\nclass Own(torch.optim.SGD): pass\n'


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Path:
    """A module beside the run, found by Python as the working directory and PYTHONPATH are."""
    (tmp_path / "my_optimizers.py").write_text(EVIL)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "inner.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("option", ["optimizer_type", "lr_scheduler_type"])
@pytest.mark.parametrize(
    "name",
    ["my_optimizers.Own", "my_package.inner.Own", "my_package.Own", "backend.demo.evaluate.X", "os.path", "sys.x"],
)
def test_a_class_from_beside_the_run_is_refused_unread(option, name, own_module):
    found = problems(TrainNetwork, REQUIRED, {option: name})
    assert "is not in an installed package" in found[option]
    with pytest.raises(NotInstalledError):
        import_installed(name.rpartition(".")[0])
    assert not (own_module / "it-ran").exists()
    assert "my_optimizers" not in sys.modules


def test_where_it_lies_is_told(own_module):
    (message,) = problems(TrainNetwork, REQUIRED, {"optimizer_type": "my_optimizers.Own"}).values()
    assert str(own_module / "my_optimizers.py") in message and "install it with pip" in message


@pytest.mark.parametrize("name", ["torch.optim", "torch.optim.lr_scheduler", "transformers.optimization"])
def test_installed_packages_are_imported(name):
    assert import_installed(name).__name__ == name


def test_what_is_nowhere_is_left_to_the_import():
    refuse_elsewhere("no_such_module_at_all.inner")
    with pytest.raises(ImportError, match="no_such_module_at_all"):
        import_installed("no_such_module_at_all.inner")


@pytest.mark.parametrize("name", ["__main__", "pip.__main__", "torch.__main__"])
def test_what_runs_when_it_is_imported_is_refused(name):
    with pytest.raises(NotInstalledError):
        refuse_elsewhere(name)


def test_a_file_that_hides_an_installed_package_is_refused(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "loom_stand_in_optimizers.py").write_text("")
    monkeypatch.setattr(installed, "_roots", lambda: (str(site),))
    monkeypatch.syspath_prepend(str(site))
    refuse_elsewhere("loom_stand_in_optimizers")
    (tmp_path / "loom_stand_in_optimizers.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotInstalledError, match="it lies in"):
        refuse_elsewhere("loom_stand_in_optimizers")


def test_a_namespace_is_installed_only_as_a_whole(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "loom_space" / "good").mkdir(parents=True)
    monkeypatch.setattr(installed, "_roots", lambda: (str(site),))
    monkeypatch.syspath_prepend(str(site))
    refuse_elsewhere("loom_space.good")
    (tmp_path / "loom_space").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotInstalledError):
        refuse_elsewhere("loom_space.good")


@pytest.mark.parametrize("way", ["folder", "path", "workspace"])
def test_no_command_line_runs_it(way, tmp_path):
    place = tmp_path / "workspace" if way == "workspace" else tmp_path
    place.mkdir(exist_ok=True)
    (place / "my_optimizers.py").write_text(EVIL)
    environment = {"PATH": "/usr/bin:/bin", "LORALOOM_WORKSPACE": str(tmp_path / "workspace")}
    environment["PYTHONPATH"] = f"{PROJECT}:{place}" if way == "path" else str(PROJECT)
    options = [f"--{name}={value}" for name, value in REQUIRED.items()]
    words = ["-m", "backend", "train_network", *options, "--optimizer_type", "my_optimizers.Own"]
    done = subprocess.run([sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "optimizer_type: my_optimizers is not in an installed package" in done.stderr
    assert not (place / "it-ran").exists()


@pytest.mark.parametrize("name", ["os.path", "sys", "json"])
def test_what_comes_with_python_is_no_package(name):
    with pytest.raises(NotInstalledError, match=f"^{name} is not in an installed package") as caught:
        refuse_elsewhere(name)
    assert "frozen" not in str(caught.value) and "built-in" not in str(caught.value)
