"""The house keeps its shape: layers, sizes, what lies at the top, and a web process without torch."""

import ast
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml", "webui.py"}
FILES |= {"requirements.txt", "webui.sh", "test.sh", ".gitignore", ".gitattributes"}
ROOMS = {".ci", "backend", "benchmarks", "docker", "docs", "presets", "tabs", "tests"}


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", pattern], cwd=PROJECT, capture_output=True, text=True, check=True)
    return [PROJECT / name for name in done.stdout.split("\0") if name and (PROJECT / name).is_file()]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)


def test_the_web_process_never_imports_torch():
    heavy = "{'torch', 'diffusers', 'transformers', 'accelerate', 'safetensors', 'xformers'}"
    done = run(f"import sys, webui, tabs; found = {heavy} & set(sys.modules); assert not found, found; tabs.build")
    assert done.returncode == 0, done.stderr


def test_a_command_is_found_without_its_weight():
    heavy = "{'torch', 'gradio', 'diffusers'}"
    done = run(f"import sys, backend.__main__, backend.jobs; assert not {heavy} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_layers_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_its_layer():
    with (PROJECT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {name.strip(" ()") for row in rows for name in row.split("|")}
    found = {path.relative_to(PROJECT / "backend").parts[0].removesuffix(".py") for path in tracked("backend/*.py")}
    assert found - {"__init__"} <= named


def test_files_are_short():
    long = {str(path.relative_to(PROJECT)): lines for path in tracked("*.py")
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}  # fmt: skip
    assert not long


def test_public_functions_have_types_and_modules_say_what_they_are():
    untyped, silent = [], []
    for path in [*tracked("backend/*.py"), *tracked("tabs/*.py"), PROJECT / "webui.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(path.name)
        untyped += [f"{path.name}:{node.name}" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                    and not node.name.startswith("_") and node.returns is None]  # fmt: skip
    assert not silent and not untyped


def test_the_top_is_tidy():
    assert {path.relative_to(PROJECT).parts[0] for path in tracked("*")} <= FILES | ROOMS


def test_the_scripts_can_be_run():
    for name in ("webui.sh", "test.sh", ".ci/run"):
        assert os.stat(PROJECT / name).st_mode & stat.S_IXUSR, name


def test_pins_are_exact_and_gradio_has_its_security_fixes():
    pins = {}
    for name in ("requirements.txt", "tests/requirements.txt"):
        for line in (PROJECT / name).read_text().splitlines():
            if line and not line.startswith("#"):
                package, exact, version = line.partition(";")[0].strip().partition("==")
                assert exact and version, line
                pins[package] = version
    assert tuple(map(int, pins["gradio"].split("."))) >= (6, 31)
    assert {"torch", "diffusers", "transformers", "accelerate", "safetensors", "bitsandbytes", "xformers", "pydantic",
            "tomlkit", "opencv-python-headless"} <= pins.keys()  # fmt: skip


@pytest.mark.parametrize("name", ["a shell", "a mark of work left undone"])
def test_nothing_forbidden_is_written(name):
    words = {"a shell": "shell=" + "True", "a mark of work left undone": "TO" + "DO"}
    assert not [str(path) for path in tracked("*.py") if words[name] in path.read_text(encoding="utf-8")]
