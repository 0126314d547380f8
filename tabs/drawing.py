"""One picture from the generate worker: the request out of the form's values, progress on the way, the answer shown."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from backend.config.paths import meant_path
from backend.errors import ConfigError, UserError
from backend.fitting import size_problems
from backend.preflight import family_problem, lora_problem, model_problem
from backend.serving import Services
from backend.worker import Cancelled, new_number
from tabs.form import marked
from tabs.text import bar, complaint, figures, notice, problems_of

CRISP = 128
HISTORY = 24
UPDATE_SECONDS = 0.15
# How many values of `Settings` stand before those of the rows.
SETTINGS = 10
LORA = "LoRA"
# The fields that show what is wrong with them, each with its help.
MARKED: Mapping[str, str | None] = {
    "model": "A model of the workspace, a path, or a hub name (org/repo, or org/repo/file.safetensors).",
    "prompt": None,
    "width": None,
    "height": None,
    "seed": None,
}
DRAWING, STOPPED = gr.update(interactive=True), gr.update(interactive=False)


@dataclass
class Canvas:
    """What one browser has drawn: the seed of the last picture, and the last pictures with what they were made of."""

    seed: int | None = None
    history: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Desk:
    """Which request is drawn for which browser, so that nobody cancels what another has asked for.

    Attributes:
        numbers: the worker's number of the request, by the browser's session.
        used: the model and the LoRAs of each request, by its number.
    """

    numbers: dict[str, str] = field(default_factory=dict)
    used: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def paths(self) -> set[str]:
        """What pictures are being drawn with."""
        return {path for paths in list(self.used.values()) for path in paths}


def read_request(services: Services, shown: Sequence[Any], seed: int | None) -> dict[str, Any]:
    """A request for the worker out of the widgets' values: those of `Settings`, then paths, then multipliers.

    Args:
        services: what the tabs work with.
        shown: the values.
        seed: used where the seed's field is empty; None has the worker draw one.

    Raises:
        ConfigError: naming whatever is missing, wrong or too large.
    """
    model, prompt, negative, width, height, steps, scale, sampler, wanted, unmatched = shown[:SETTINGS]
    problems: list[tuple[str, str]] = []
    prompt = (prompt or "").strip()
    try:
        model = meant_path(model or "")
        problems += [("model", model_problem(model) if model else "choose a model")]
    except ValueError as error:
        problems += [("model", str(error))]
    problems += [("prompt", "" if prompt else "say what to draw")]
    numbers: dict[str, int | None] = {}
    for name, text in (("width", width), ("height", height), ("steps", steps), ("seed", wanted)):
        try:
            numbers[name] = _whole(text, name)
        except UserError as error:
            problems.append((name, error.message))
    if not any(name in ("width", "height") for name, _ in problems):
        problems += size_problems(numbers["width"], numbers["height"], model).items()
    loras = read_loras(shown[SETTINGS:])
    problems += [(LORA, lora_problem(lora["path"]) or family_problem(lora["path"], model)) for lora in loras]
    problems = [(name, message) for name, message in problems if message]
    if problems:
        raise ConfigError(problems)
    return {
        "op": "generate",
        "model": model,
        "loras": loras,
        "prompt": prompt,
        "negative": (negative or "").strip(),
        "width": numbers["width"],
        "height": numbers["height"],
        "steps": numbers["steps"],
        "scale": float(scale),
        "sampler": sampler,
        "seed": seed if numbers["seed"] is None else numbers["seed"],
        "count": 1,
        "out_dir": str(services.workspace.outputs),
        **({"allow_unmatched": True} if unmatched else {}),
    }


def read_loras(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Paths and multipliers out of the rows' values: first all paths, then all multipliers; an empty row is none."""
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    return [{"path": _meant(str(path)), "multiplier": float(multiplier or 0)} for path, multiplier in pairs if path]


def _meant(text: str) -> str:
    """A path as it is meant; what cannot be told is judged as it stands."""
    try:
        return meant_path(text)
    except ValueError:
        return text


def marks(problems: Mapping[str, str]) -> list[Any]:
    """Updates of the widgets that `MARKED` names that show each problem at its field, or take away those of before."""
    return [marked(problems.get(name), text) for name, text in MARKED.items()]


def run(
    services: Services, desk: Desk, session: str, canvas: Canvas, shown: Sequence[Any], again: bool
) -> Iterator[list[Any]]:
    """Draw a picture; yields updates of `Result.outputs` and of the marked fields as it goes.

    Args:
        services: what the tabs work with.
        desk: where the request is noted while it is drawn.
        session: of the browser.
        canvas: of this browser.
        shown: values of the widgets, as `read_request` takes them.
        again: whether an unset seed is that of the last picture, else a new one.
    """
    still = [gr.skip()] * 4
    kept = [gr.skip()] * len(MARKED)

    def refused(error: UserError) -> list[Any]:
        return [canvas, complaint(error), *still, STOPPED, *marks(dict(problems_of(error)))]

    try:
        request = read_request(services, shown, canvas.seed if again else None)
    except UserError as error:
        yield refused(error)
        return
    news: queue.Queue[dict[str, Any] | UserError] = queue.Queue()
    number = desk.numbers[session] = new_number()
    desk.used[number] = (request["model"], *(lora["path"] for lora in request["loras"]))
    threading.Thread(target=_ask, args=(services, request, number, news), daemon=True).start()
    begun, said = time.monotonic(), 0.0
    words = "drawing …" if services.worker.running else "starting the worker, loading the model …"
    try:
        yield [canvas, _waiting(0, 0, words), *still, DRAWING, *marks({})]
        while True:
            answer = news.get()
            if isinstance(answer, Cancelled):
                yield [canvas, notice("Cancelled. The model stays loaded."), *still, STOPPED, *kept]
                return
            if isinstance(answer, UserError):
                yield refused(answer)
                return
            if answer["event"] == "done":
                break
            if time.monotonic() - said >= UPDATE_SECONDS:
                said = time.monotonic()
                bar_ = _waiting(int(answer.get("step") or 0), int(answer.get("total") or 0), "drawing")
                yield [canvas, bar_, *still, gr.skip(), *kept]
    finally:
        # Of no request that has ended; of a closed browser's, which nobody waits for any more.
        services.worker.cancel(number)
        del desk.used[number]
        if desk.numbers.get(session) == number:
            del desk.numbers[session]
    yield [*_show(canvas, request, answer, time.monotonic() - begun), STOPPED, *kept]


def cancel(services: Services, desk: Desk, session: str) -> None:
    """End what is drawn for a browser."""
    number = desk.numbers.get(session)
    if number is not None:
        services.worker.cancel(number)


def _ask(
    services: Services, request: dict[str, Any], number: str, news: "queue.Queue[dict[str, Any] | UserError]"
) -> None:
    try:
        news.put(services.worker.request(request, news.put, number))
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
        f'<div class="status">{figures(done)}</div>' + "".join(map(notice, answer.get("warnings", ()))),
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
