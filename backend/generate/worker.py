"""The generate worker: a long-lived process that keeps a model loaded and answers requests.

    python -m backend.generate

One JSON object a line, requests on stdin and answers on stdout:

    {"id": 1, "op": "generate", "model": "...", "loras": [{"path": "...", "multiplier": 0.8}], "prompt": "...",
     "negative": "", "width": null, "height": null, "steps": 20, "scale": 7.5, "sampler": "ddim", "seed": 1, "count": 1,
     "precision": "fp16", "allow_unmatched": false, "out_dir": "..."}
        -> {"id": 1, "event": "progress", "step": 3, "total": 20} ...
        -> {"id": 1, "event": "done", "images": ["..."], "seeds": [1], "seconds": 2.5, "warnings": ["..."]}
         | {"id": 1, "event": "error", "message": "...", "field": "..."}
         | {"id": 1, "event": "cancelled", "images": [], "seeds": []}
    {"op": "cancel", "id": 1}   ends the request of that id within a step; the model stays loaded, and the request is
                                answered with `cancelled` and the pictures that it has already written. An id that is
                                not being answered and does not wait is passed over, without an answer
    {"id": 2, "op": "unload"}   gives the device's memory back
    {"id": 3, "op": "quit"}     ends the process, as the end of stdin does

`model`, `prompt` and `out_dir` are needed; everything else may be left out, also `vae`, `clip_skip`, `max_token_length`
and `v_parameterization`, which mean what they mean to `gen_img`. `<lora:name:0.8>` in a prompt is looked for beside the
files in `loras` and in the workspace. `warnings` are lines for the user: of a prompt that is too long, or of what was
left out of a LoRA. Whatever libraries print goes to stderr.
"""

import errno
import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from backend import threads
from backend.errors import UserError
from backend.families.base import LoadOptions
from backend.generate.device import device_line
from backend.generate.images import describe, save_png
from backend.generate.lora_tags import Dose, find_loras
from backend.generate.notes import prompt_notes
from backend.generate.pipeline import GenerationModel, load_generation_model
from backend.generate.prompts import Request, with_tags
from backend.generate.run import choose_device, free_path
from backend.terminal import say

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
BATCH_SIZE = 4
KINDS: Mapping[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "width": (int, type(None)),
    "height": (int, type(None)),
    "steps": (int,),
    "scale": (int, float),
    "sampler": (str,),
    "seed": (int, type(None)),
    "count": (int,),
}
OTHERS = ("id", "op", "model", "revision", "loras", "allow_unmatched", "precision", "out_dir", "batch_size")
MODEL_KINDS: Mapping[str, type] = {"vae": str, "clip_skip": int, "max_token_length": int, "v_parameterization": bool}


@dataclass(frozen=True)
class Loaded:
    """The model in memory and what it was loaded as: path, revision, precision, time of change, options."""

    key: tuple[object, ...]
    generator: GenerationModel


class Cancelled(Exception):
    """The request that is being answered is no longer wanted."""


class Inbox:
    """Requests in the order of their lines, read by a thread of its own, so that a cancel is heard during a drawing.

    Args:
        lines: one JSON object each.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._open: list[object] = []  # ids of the requests that wait or are being answered
        self._unwanted: list[object] = []
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The requests, until `quit` or the end of the lines; a line that holds none comes as an empty one."""
        while (request := self._requests.get()) is not None:
            yield request
            with self._lock:
                identity = request.get("id")
                self._open.remove(identity)
                if identity not in self._open and identity in self._unwanted:
                    self._unwanted.remove(identity)

    def cancelled(self, identity: object) -> bool:
        """Whether the request of an id is no longer wanted."""
        with self._lock:
            return identity in self._unwanted

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            request = found if isinstance(found, dict) else {}
            with self._lock:
                if request.get("op") == "cancel":
                    identity = request.get("id")
                    if identity in self._open and identity not in self._unwanted:
                        self._unwanted.append(identity)
                    continue
                self._open.append(request.get("id"))
            self._requests.put(request)
            if request.get("op") == "quit":
                break
        self._requests.put(None)


class Worker:
    """Answers requests one after the other.

    Args:
        answers: where the answers go, one JSON object a line.
    """

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.device = choose_device(None)
        if line := device_line(self.device):
            say(line)
        self.loaded: Loaded | None = None
        self._inbox = Inbox(())

    def serve(self, lines: Iterable[str]) -> None:
        """Answer until `quit` or the end of the lines."""
        self._inbox = Inbox(lines)
        for request in self._inbox:
            if not request:
                self.tell(None, "error", message="a request is one JSON object a line", field=None)
            elif request.get("op") == "quit":
                self.tell(request.get("id"), "done")
            else:
                self.answer(request)

    def answer(self, request: Mapping[str, Any]) -> None:
        """Answer one request; what the user can mend is an error event, and the worker goes on."""
        identity = request.get("id")
        try:
            if request.get("op") == "generate":
                self.draw(request)
            elif request.get("op") == "unload":
                self.unload()
                self.tell(identity, "done")
            else:
                known = "generate, cancel, unload and quit"
                raise UserError(f"{request.get('op')!r} is unknown; there are {known}", field="op")
        except UserError as error:
            self.tell(identity, "error", message=error.message, field=error.field)
        except (torch.OutOfMemoryError, MemoryError):
            self.unload()
            message = "not enough memory for pictures of this size; make them smaller or fewer at a time"
            self.tell(identity, "error", message=message, field=None)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = "the disk is full, so the picture was not kept; delete old pictures or runs"
            else:
                message = f"cannot be read or written: {error.strerror or error}"
            self.tell(identity, "error", message=message, field=error.filename and str(error.filename))

    def draw(self, request: Mapping[str, Any]) -> None:
        """Draw the pictures of a request, and tell their paths and seeds and the seconds it took."""
        began = time.monotonic()
        images: list[str] = []
        seeds: list[int] = []
        warnings: list[str] = []
        try:
            for path, seed in self.generate(request, warnings):
                images.append(str(path))
                seeds.append(seed)
        except Cancelled:
            self.tell(request.get("id"), "cancelled", images=images, seeds=seeds)
            return
        seconds = round(time.monotonic() - began, 3)
        self.tell(request.get("id"), "done", images=images, seeds=seeds, seconds=seconds, warnings=warnings)

    def generate(self, request: Mapping[str, Any], warnings: list[str]) -> Iterator[tuple[Path, int]]:
        """Draw the pictures of a request and write them; gives each one's path and seed.

        Args:
            request: as it has come.
            warnings: takes lines for the user.

        Raises:
            Cancelled: the request is no longer wanted; what was not yet written is given up.
        """
        wish = read_request(request)
        loras = [Dose(Path(lora["path"]), float(lora["multiplier"])) for lora in request.get("loras", ())]
        loras += find_loras(wish.loras, [dose.path for dose in loras])
        self.check_wanted(request)
        generator = self.load(request)
        self.check_wanted(request)
        warnings += prompt_notes(generator.model, [wish])
        generator.set_loras(loras, request.get("allow_unmatched", False))
        warnings += generator.lora_notes

        def report(done: int, total: int) -> None:
            self.check_wanted(request)
            self.tell(request.get("id"), "progress", step=done, total=total)

        for single, picture in generator.pictures(wish, request.get("batch_size", BATCH_SIZE), report):
            self.check_wanted(request)
            path = free_path(Path(request["out_dir"]), f"{time.strftime('%Y%m%d%H%M%S')}_{single.seed}")
            save_png(picture, path, describe(single, Path(request["model"]).stem, generator.loras))
            yield path, single.seed

    def check_wanted(self, request: Mapping[str, Any]) -> None:
        """See that nobody has cancelled the request.

        Raises:
            Cancelled: somebody has.
        """
        if self._inbox.cancelled(request.get("id")):
            raise Cancelled

    def load(self, request: Mapping[str, Any]) -> GenerationModel:
        """The request's model: the one in memory if it is that, else loaded in its place."""
        default = "fp16" if self.device.type == "cuda" else "float"
        precision = request.get("precision") or default
        if precision not in DTYPES:
            raise UserError(f"{precision!r} is unknown; choose one of {', '.join(DTYPES)}", field="precision")
        source, revision = request["model"], request.get("revision")
        changed = Path(source).stat().st_mtime_ns if Path(source).exists() else None
        options = read_options(request)
        key = (source, revision, precision, changed, options)
        if self.loaded is None or self.loaded.key != key:
            self.unload()
            self.tell(request.get("id"), "phase", name="loading")
            if self.device.type == "cpu":
                set_threads(source)
            loaded = load_generation_model(source, revision, self.device, DTYPES[precision], options)
            self.loaded = Loaded(key, loaded)
        return self.loaded.generator

    def unload(self) -> None:
        """Forget the model and give its memory back."""
        self.loaded = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tell(self, identity: object, event: str, **fields: object) -> None:
        """Write one answer."""
        self.answers.write(json.dumps({"id": identity, "event": event, **fields}) + "\n")
        self.answers.flush()


def set_threads(source: str) -> None:
    """As many threads as suit the model, unless the user has set a number."""
    if not any(os.environ.get(name) for name in threads.NUMBER):
        torch.set_num_threads(threads.plan(threads.size_of([Path(source)]), threads.find()).threads)


def read_request(request: Mapping[str, Any]) -> Request:
    """What to draw, out of a request's JSON.

    Raises:
        UserError: something is missing, unknown or of the wrong kind.
    """
    for name in ("model", "prompt", "out_dir"):
        if not isinstance(request.get(name), str):
            raise UserError("is needed, as text", field=name)
    known = (*KINDS, *OTHERS, *MODEL_KINDS)
    unknown = [name for name in request if name not in known]
    if unknown:
        raise UserError(f"is unknown; there are {', '.join(known)}", field=unknown[0])
    for name, kinds in KINDS.items():
        value = request.get(name)
        if name in request and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{value!r} is of the wrong kind", field=name)
    loras = request.get("loras", [])
    if not isinstance(loras, list) or not all(is_lora(lora) for lora in loras):
        raise UserError('is a list of {"path": "...", "multiplier": 1.0}', field="loras")
    if not isinstance(request.get("allow_unmatched", False), bool):
        raise UserError("is true or false", field="allow_unmatched")
    batch_size = request.get("batch_size", BATCH_SIZE)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError("is a number of pictures, at least 1", field="batch_size")
    for name in ("prompt", "negative"):
        if not request.get(name, "").isprintable() and any("\ud800" <= letter <= "\udfff" for letter in request[name]):
            raise UserError("has half of a character (a surrogate), which is no text", field=name)
    return with_tags(Request(**{name: request[name] for name in KINDS if name in request}))


def read_options(request: Mapping[str, Any]) -> LoadOptions:
    """What a request asks of its model beyond the model itself.

    Raises:
        UserError: something is of the wrong kind.
    """
    found = {name: request[name] for name in MODEL_KINDS if request.get(name) is not None}
    for name, value in found.items():
        if type(value) is not MODEL_KINDS[name]:
            raise UserError(f"{value!r} is of the wrong kind", field=name)
    if found.get("max_token_length", 75) not in (75, 150, 225):
        raise UserError("must be 75, 150 or 225", field="max_token_length")
    if found.get("clip_skip", 1) < 1:
        raise UserError("must be at least 1", field="clip_skip")
    return LoadOptions(**found)


def is_lora(value: object) -> bool:
    """Whether a JSON value names a LoRA file and its multiplier."""
    if not isinstance(value, dict) or set(value) != {"path", "multiplier"}:
        return False
    multiplier = value["multiplier"]
    return isinstance(value["path"], str) and isinstance(multiplier, int | float) and not isinstance(multiplier, bool)


def main() -> None:
    """Serve stdin. The protocol keeps the real stdout; what anyone else prints there goes to stderr."""
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Unbuffered: at the end of the process the lock of a buffer that a thread waits in could not be had.
    with protocol, open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as requests:
        Worker(protocol).serve(line.decode("utf-8", "replace") for line in iter(requests.readline, b""))
