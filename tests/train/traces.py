"""What a short run did, aspect by aspect, so that two runs can be compared."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.data.batches import Item
from backend.train import loop
from backend.train.setup import Run

# Everything that is compared, from what comes first in a step to what comes last.
ASPECTS = (
    "pictures",  # which, in which order and batches
    "sizes",  # SDXL's idea of them: original size, crop, size in training
    "captions",  # as they are encoded
    "latents",  # what the VAE made of them
    "masks",
    "base",  # the frozen model: weights, their types, its attention
    "start",  # the network before the first step: names, shapes, types and numbers
    "optimizer",  # class and settings, but for rates
    "times",
    "noise",
    "seen",  # the noisy latents that the model is shown
    "conditioning",  # of the first captions, before anything is learnt
    "target",
    "losses",
    "rates",  # of every group at every step
    "learnt",  # the network after the last step
    "files",  # names of what was written
    "kinds",  # of tensors and metadata fields in the last file
)


def digest(value: Any) -> str:
    """A short text that differs where the value does; tensors count with their shape and type."""
    if isinstance(value, Tensor):
        body = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        text = repr((tuple(value.shape), value.dtype)).encode() + body
    elif isinstance(value, dict):
        text = repr([(key, digest(item)) for key, item in value.items()]).encode()
    elif isinstance(value, list | tuple):
        text = repr([digest(item) for item in value]).encode()
    else:
        text = repr(value).encode()
    return hashlib.sha256(text).hexdigest()[:12]


def trace(run: Run, monkeypatch: Any) -> dict[str, str]:
    """Train the prepared run to its end and give a digest of every aspect."""
    seen: dict[str, list[Any]] = {name: [] for name in ASPECTS}
    seen["base"] = [base_of(run)]
    seen["start"] = [{name: value.clone() for name, value in run.network.state_dict().items()}]
    seen["optimizer"] = [optimizer_of(run)]

    def watch(place: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(place, name)

        @functools.wraps(original)
        def watched(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            note(result, *arguments)
            return result

        monkeypatch.setattr(place, name, watched)

    def step(loss: Tensor, _run: Run, _step: int, micro_batches: list[Any]) -> None:
        seen["losses"].append(loss.clone())
        seen["rates"].append(tuple(sorted(loop.current_rates(run).items())))
        for batch, latents, masks in micro_batches:
            seen["pictures"].append([name_of(item) for item in batch.items])
            seen["sizes"].append([item.sizes for item in batch.items])
            seen["captions"].append([item.caption for item in batch.items])
            seen["latents"].append(latents.clone())
            seen["masks"].append(masks)

    watch(loop, "training_step", step)
    watch(loop, "training_noise", lambda noise, *_: seen["noise"].append(noise))
    predict, errors = run.model.family.predict, run.objective.errors

    def watched_predict(model: Any, noisy: Tensor, times: Tensor, conditioning: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen["seen"].append(noisy.clone())
            seen["times"].append(times.clone())
            if not seen["conditioning"]:
                seen["conditioning"].append(conditioning.hidden.detach().clone())
        return predict(model, noisy, times, conditioning)

    def watched_errors(predicted: Tensor, target: Tensor, times: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen["target"].append(target.clone())
        return errors(predicted, target, times)

    run.model.family = replace(run.model.family, predict=watched_predict)
    object.__setattr__(run.objective, "errors", watched_errors)
    loop.train(run)
    seen["learnt"] = [dict(run.network.state_dict())]
    seen["files"] = sorted(str(path.relative_to(run.outputs.folder)) for path in files_of(run.outputs.folder))
    seen["kinds"] = [kinds_of(run)]
    return {name: digest(seen[name]) for name in ASPECTS}


def name_of(item: Item) -> tuple[str, bool]:
    """A sample without its folder, which differs between runs."""
    return item.picture.path.name, item.flip


def base_of(run: Run) -> Any:
    """The frozen model."""
    modules = (run.model.unet, *run.model.text_encoders)
    processors = [type(one).__name__ for one in run.model.unet.attn_processors.values()]
    own = [dict(module.state_dict()) for module in modules]
    return own, processors, sorted(run.model.scheduler.items(), key=str)


def optimizer_of(run: Run) -> Any:
    """The optimizer's class and settings, and how its parameters are grouped."""
    inner = getattr(run.optimizer, "optimizer", run.optimizer)
    settings = {name: value for name, value in inner.defaults.items() if name != "lr"}
    groups = [(name, len(group["params"])) for name, group in zip(run.group_names, inner.param_groups, strict=True)]
    return type(inner).__name__, sorted(settings.items()), groups


def files_of(folder: Path) -> list[Path]:
    """Everything that lies below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def kinds_of(run: Run) -> Any:
    """Types of the tensors and names of the metadata of the last file, in whatever format it is."""
    from backend.lora.source import read_tensors

    tensors, metadata = read_tensors(run.outputs.final)
    return sorted({str(value.dtype) for value in tensors.values()}), sorted(metadata)
