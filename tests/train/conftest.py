"""A tiny random model, a few drawn pictures, and runs made of them."""

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw
from torch import Tensor, nn

from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.families.base import LoadOptions, Model, load_model, save_diffusers
from backend.families.build import SMALL, random_model
from backend.families.widths import family_config
from backend.train.setup import Run, prepare
from tests.train.traces import trace

# Of every run of the learning proof.
RUN = {"learning_rate": 1e-2, "max_train_steps": 3}
COLOURS = ("red", "green", "blue", "yellow", "white", "black")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion 1 model of the demo model's sizes with random weights."""
    folder = tmp_path_factory.mktemp("model")
    save_diffusers(random_model(0), folder)
    return folder


@pytest.fixture(scope="session")
def short_folder(tmp_path_factory) -> Path:
    """The same with one layer to a block, which makes a step half as long; only `load_short` reads it."""
    folder = tmp_path_factory.mktemp("short")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SMALL["sd1"]["unet"], "layers_per_block", 1)
        save_diffusers(random_model(0), folder)
    return folder


def load_short(source: str | Path, revision: str | None = None, options: LoadOptions | None = None) -> Model:
    """As `load_model`, for folders, whatever the number of layers to a block."""
    layers = json.loads((Path(source) / "unet" / "config.json").read_text(encoding="utf-8"))["layers_per_block"]

    def config_of_family(name: str) -> dict[str, dict[str, object]]:
        config = family_config(name)
        config["unet"]["layers_per_block"] = layers
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.families.folder.family_config", config_of_family)
        return load_model(source, revision, options, dtype=None)


@pytest.fixture(scope="session")
def model(short_folder, model_folder) -> Model:
    """The short model in memory, in the name of the other; never changed."""
    return replace(load_short(short_folder), source=str(model_folder))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps device and precision for the whole process; a run is a process of its own otherwise."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class TensorsApart(pickle.Pickler):
    """Pickles all but the tensors, which it keeps in a list, each once."""

    def __init__(self, target: io.BytesIO) -> None:
        super().__init__(target, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._places:
            self._places[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._places[id(value)]


class TensorsGiven(pickle.Unpickler):
    """Puts these tensors where `TensorsApart` took them out."""

    def __init__(self, source: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(source)
        self._tensors = tensors

    def persistent_load(self, place: int) -> Tensor:
        return self._tensors[place]


class Mould:
    """Makes copies of a module, in a third of the time that `copy.deepcopy` takes."""

    def __init__(self, module: nn.Module) -> None:
        buffer = io.BytesIO()
        pickler = TensorsApart(buffer)
        pickler.dump(module)
        self.tensors, self.rest = pickler.tensors, buffer.getvalue()

    def copy(self) -> nn.Module:
        """The module with the values that its tensors have now; one that stands in two places still does."""
        own = [value.detach().clone() for value in self.tensors]
        own = [
            nn.Parameter(copied, value.requires_grad) if isinstance(value, nn.Parameter) else copied
            for copied, value in zip(own, self.tensors, strict=True)
        ]
        return TensorsGiven(io.BytesIO(self.rest), own).load()


_moulds: WeakKeyDictionary[nn.Module, Mould] = WeakKeyDictionary()


def _copy(module: nn.Module) -> nn.Module:
    if module not in _moulds:
        _moulds[module] = Mould(module)
    return _moulds[module].copy()


def copy_of(model: Model) -> Model:
    """A model with modules of its own."""
    encoders = [_copy(encoder) for encoder in model.text_encoders]
    return replace(model, unet=_copy(model.unet), text_encoders=encoders, vae=_copy(model.vae))


def draw_pictures(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> None:
    """Captioned pictures of a disc on a background."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        ground, colour = COLOURS[index % 6], COLOURS[(index + 1 + index // 6) % 6]
        picture = Image.new("RGB", size, ground)
        ImageDraw.Draw(picture).ellipse((8, 8, 40 + index, 40 + index), fill=colour)
        picture.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"a {colour} disc on {ground}", encoding="utf-8")


@pytest.fixture
def dataset(tmp_path) -> Callable[..., Path]:
    """dataset(count=4, reg=0, batch_size=4, size=...): a dataset toml and its pictures."""

    def make(count: int = 4, reg: int = 0, batch_size: int = 4, extra: str = "") -> Path:
        given = [
            line for line in ("resolution = 64", f"batch_size = {batch_size}") if line.split()[0] + " =" not in extra
        ]
        text = "\n".join(["[general]", *given, extra, "[[datasets]]\n"])
        for name, number, is_reg in (("pictures", count, "false"), ("reg", reg, "true")):
            if number:
                draw_pictures(tmp_path / name, number)
                text += f'[[datasets.subsets]]\nimage_dir = "{tmp_path / name}"\nis_reg = {is_reg}\n'
        path = tmp_path / f"dataset_{count}_{reg}_{batch_size}_{len(extra)}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def config_of(tmp_path, model_folder, dataset) -> Callable[..., TrainNetwork]:
    """config_of(option=value, ...): a small, seeded training config, changed by the options."""

    def make(**options: object) -> TrainNetwork:
        defaults = {
            "pretrained_model_name_or_path": str(model_folder),
            "output_dir": str(tmp_path / "output"),
            "output_name": "test",
            "max_train_steps": 2,
            "seed": 7,
            "cache_latents": True,
            "max_data_loader_n_workers": 0,
        }
        if "dataset_config" not in options:
            defaults["dataset_config"] = str(dataset())
        return resolve(TrainNetwork, defaults | options)

    return make


@pytest.fixture
def run_of(config_of, model, monkeypatch) -> Callable[..., Run]:
    """run_of(option=value, ...): a prepared run on a copy of the model; outputs of earlier ones are replaced."""
    monkeypatch.setattr("backend.train.setup.load_model", lambda *source, dtype: copy_of(model))
    return lambda **options: prepare(config_of(**{"overwrite": True} | options))


_loaded = lru_cache(maxsize=8)(load_short)


def loaded_once(source: str, revision: str | None, options: LoadOptions, dtype: None) -> Model:
    """As `load_model`, which reads the files anew each time."""
    return copy_of(_loaded(source, revision, options))


@pytest.fixture(scope="module")
def known_traces() -> dict[str, dict[str, str]]:
    """Traces by options, as many rows begin with the same run."""
    return {}


@pytest.fixture
def traced(config_of, dataset, short_folder, known_traces, tmp_path, monkeypatch) -> Callable[..., dict[str, str]]:
    """traced({option: value}): what a run of three steps did; keys that begin with "dataset." go into the toml."""

    def make(options: Mapping[str, object]) -> dict[str, str]:
        key = repr(sorted(options.items()))
        if key not in known_traces:
            own = {name: value for name, value in options.items() if not name.startswith("dataset.")}
            keys = {name.removeprefix("dataset."): value for name, value in options.items() if name not in own}
            lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
            if "dataset_config" not in own:
                own["dataset_config"] = str(dataset(3, 1, 2, "\n".join(lines)))
            place = {
                "pretrained_model_name_or_path": str(short_folder),
                "output_dir": str(tmp_path / f"run{len(known_traces)}"),
            }
            with monkeypatch.context() as patch:
                patch.setattr("backend.train.setup.load_model", loaded_once)
                run = prepare(config_of(**{**place, **RUN, **own}))
                known_traces[key] = trace(run, patch)
        return known_traces[key]

    return make
