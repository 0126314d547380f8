"""One picture from the generate worker: the request out of the form's values, progress on the way, the answer shown."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from backend.errors import UserError
from backend.serving import Services
from tabs.text import bar, complaint, figures, notice

CRISP = 128
HISTORY = 24
UPDATE_SECONDS = 0.15


@dataclass
class Canvas:
    """What one browser has drawn: the seed of the last picture, and the last pictures with what they were made of."""

    seed: int | None = None
    history: list[tuple[str, str]] = field(default_factory=list)


def read_request(services: Services, shown: Sequence[Any], seed: int | None) -> dict[str, Any]:
    """A request for the worker out of the widgets' values: those of `Settings`, then paths, then multipliers.

    Args:
        services: what the tabs work with.
        shown: the values.
        seed: used where the seed's field is empty; None has the worker draw one.

    Raises:
        UserError: naming what is missing or wrong.
    """
    model, prompt, negative, width, height, steps, scale, sampler, wanted, allow_unmatched = shown[:10]
    rest = shown[10:]
    half = len(rest) // 2
    known = {path for _, path in services.workspace.list_loras()}
    loras = []
    for path, multiplier in zip(rest[:half], rest[half:], strict=True):
        if path and path not in known:
            raise UserError("this LoRA is not there any more; choose another", "LoRA")
        if path:
            loras.append({"path": path, "multiplier": float(multiplier or 0)})
    if not (model or "").strip():
        raise UserError("choose a model", "model")
    if not (prompt or "").strip():
        raise UserError("say what to draw", "prompt")
    request = {
        "op": "generate",
        "model": model.strip(),
        "loras": loras,
        "allow_unmatched": bool(allow_unmatched),
        "prompt": prompt.strip(),
        "negative": (negative or "").strip(),
        "width": _whole(width, "width"),
        "height": _whole(height, "height"),
        "steps": _whole(steps, "steps"),
        "scale": float(scale),
        "sampler": sampler,
        "seed": _whole(wanted, "seed"),
        "count": 1,
        "out_dir": str(services.workspace.outputs),
    }
    for name in ("width", "height"):
        if request[name] is not None and (request[name] < 8 or request[name] % 8):
            raise UserError("must be a multiple of 8", name)
    if request["seed"] is None:
        request["seed"] = seed
    return request


def run(services: Services, canvas: Canvas, shown: Sequence[Any], again: bool) -> Iterator[list[Any]]:
    """Draw a picture; yields updates of `Result.outputs` as it goes.

    Args:
        services: what the tabs work with.
        canvas: of this browser.
        shown: values of the widgets, as `read_request` takes them.
        again: whether an unset seed is that of the last picture, else a new one.
    """
    still = [gr.skip()] * 4
    try:
        request = read_request(services, shown, canvas.seed if again else None)
    except UserError as error:
        yield [canvas, complaint(error), *still]
        return
    news: queue.Queue[dict[str, Any] | UserError] = queue.Queue()
    threading.Thread(target=_ask, args=(services, request, news), daemon=True).start()
    begun, said = time.monotonic(), 0.0
    loading = not services.worker.running
    yield [canvas, _waiting(0, 0, "starting the worker, loading the model …" if loading else "drawing …"), *still]
    while True:
        answer = news.get()
        if isinstance(answer, UserError):
            yield [canvas, complaint(answer), *still]
            return
        if answer["event"] == "done":
            break
        if time.monotonic() - said >= UPDATE_SECONDS:
            said = time.monotonic()
            yield [canvas, _waiting(int(answer.get("step") or 0), int(answer.get("total") or 0), "drawing"), *still]
    yield _show(canvas, request, answer, time.monotonic() - begun)


def _ask(services: Services, request: dict[str, Any], news: "queue.Queue[dict[str, Any] | UserError]") -> None:
    try:
        news.put(services.worker.request(request, news.put))
    except UserError as error:
        news.put(error)
    except OSError as error:
        news.put(UserError(f"the generate worker cannot be started: {error.strerror or error}"))


def _show(canvas: Canvas, request: dict[str, Any], answer: dict[str, Any], seconds: float) -> list[Any]:
    path = answer["images"][0]
    canvas.seed = int(answer["seeds"][0])
    with Image.open(path) as image:
        text, size = str(image.info.get("parameters", "")), image.size
    doses = ", ".join(f"{Path(lora['path']).stem} × {lora['multiplier']:g}" for lora in request["loras"])
    canvas.history = [(path, f"{doses or 'no LoRA'} · seed {canvas.seed}"), *canvas.history][:HISTORY]
    done = [("size", f"{size[0]} × {size[1]}"), ("seed", str(canvas.seed)), ("time", f"{seconds:.1f} s")]
    return [
        canvas,
        f'<div class="status">{figures(done)}</div>' + "".join(map(notice, answer.get("lora_notes", ()))),
        gr.update(value=path, visible=True, elem_classes=["crisp"] if max(size) <= CRISP else []),
        gr.update(value=text, visible=True),
        gr.update(value=path, visible=True),
        gr.update(value=canvas.history, visible=len(canvas.history) > 1, selected_index=None),
    ]


def _waiting(step: int, total: int, words: str) -> str:
    count = f" {step} of {total}" if total else ""
    return f'<div class="status">{bar(step, total)}<div class="hint">{words}{count}</div></div>'


def _whole(value: Any, name: str) -> int | None:
    text = "" if value is None else str(value).strip().removesuffix(".0")
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(f"must be a whole number, got {text}", name)
    return int(text) if text else None
