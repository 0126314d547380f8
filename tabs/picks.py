"""Widgets that pick a file: a LoRA or a model of the workspace, one from the browser's machine, a name for a result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.config.base import Leaf
from backend.errors import UserError
from backend.serving import Services
from backend.workspace import WEIGHTS, module_of, slug
from tabs.form import Composite, marked
from tabs.lora_upload import take_lora
from tabs.slots import MAX_LORAS, Slot, add_button, draw_slot, lora_choices
from tabs.text import complaint

Choices = list[tuple[str, str]]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Lowest, highest, step.
RATIOS = (-2.0, 2.0, 0.05)
FIRST_SHOWN = 2
LORAS_HELP = "Those of the workspace can be chosen; others can be uploaded, or named by their path."


@dataclass
class Picks:
    """The pickers of one tab.

    Attributes:
        services: what the tabs work with.
        prefix: what the elements' ids begin with.
        renewed: dropdowns, each with what gives its choices; they are asked again whenever the tab is opened.
    """

    services: Services
    prefix: str
    renewed: list[tuple[gr.Dropdown, Callable[[], Choices]]] = field(default_factory=list)

    def loras(self) -> Choices:
        """The workspace's LoRAs."""
        return lora_choices(self.services.jobs, self.services.workspace)

    def dyloras_first(self) -> Choices:
        """The workspace's LoRAs, those that say that they are DyLoRAs ahead of the others and named so."""
        known = [(label, path, "dylora" in module_of(Path(path))) for label, path in self.loras()]
        known.sort(key=lambda item: not item[2])
        return [(f"{label} · DyLoRA" if is_one else label, path) for label, path, is_one in known]

    def dropdown(
        self, leaf: Leaf, known: Callable[[], Choices], value: str | None = None, info: str = "", **look: Any
    ) -> gr.Dropdown:
        """A dropdown for an option, whose choices are asked for again whenever the tab is opened.

        Args:
            known: gives the choices; anything else can be typed.
            value: chosen at first.
            info: instead of the option's help.
            look: further arguments of the widget.
        """
        choice = gr.Dropdown(
            known(),
            value=value,
            label=leaf.name,
            info=info or leaf.help,
            allow_custom_value=True,
            interactive=True,
            elem_id=f"{self.prefix}option-{leaf.name}",
            elem_classes=["option"],
            **look,
        )
        self.renewed.append((choice, known))
        return choice

    def dylora(self, leaf: Leaf) -> Component:
        """A dropdown of LoRAs, the DyLoRAs first, with an upload beside it."""
        with gr.Row(elem_classes=["pick"]):
            choice = self.dropdown(leaf, self.dyloras_first, scale=4, min_width=200)
            upload = self._upload_button("Upload a file")

        told = gr.HTML(padding=False)

        def take(path: str) -> list[Any]:
            try:
                taken = self.take(path)
            except UserError as error:
                return [complaint(error), gr.skip()]
            return ["", gr.update(choices=self.dyloras_first(), value=taken)]

        upload.upload(take, upload, [told, choice], api_name=f"{self.prefix}upload", **QUIET)
        return choice

    def checkpoint(self, leaf: Leaf) -> Component:
        """A dropdown of models; one that may be left out has that as its first choice."""
        none = [("none: merge into one LoRA", "")] if leaf.optional else []

        def known() -> Choices:
            return none + self.services.workspace.list_models()

        return self.dropdown(leaf, known, "" if none else None)

    def mixture(self, leaf: Leaf) -> Composite:
        """Rows of a LoRA and how much of it, for the options `models` and `ratios`."""
        known = self.loras()
        gr.HTML(f'<div class="hint">{leaf.help} {LORAS_HELP}</div>', padding=False)
        with gr.Column(elem_id=f"{self.prefix}option-{leaf.name}", elem_classes=["mixture"]):
            slots = [draw_slot(number < FIRST_SHOWN, None, known, "Ratio", RATIOS) for number in range(MAX_LORAS)]
        with gr.Row():
            add = gr.Button("Add a LoRA", size="sm", min_width=120, elem_id=f"{self.prefix}lora-add")
            upload = self._upload_button("Upload a LoRA")
        told = gr.HTML(padding=False)
        shown = gr.State((True,) * FIRST_SHOWN + (False,) * (MAX_LORAS - FIRST_SHOWN))
        self.renewed += [(slot.file, self.loras) for slot in slots]
        _connect_rows(self, shown, slots, (add, upload, told))
        files, sliders = [slot.file for slot in slots], [slot.slider for slot in slots]

        def mark(problems: Mapping[str, str]) -> list[Any]:
            wrong = [
                gr.update(elem_classes=["lora-file", *_invalid("models", problems)]),
                gr.update(elem_classes=["multiplier", *_invalid("ratios", problems)]),
            ]
            return [gr.skip(), *[wrong[0]] * MAX_LORAS, *[wrong[1]] * MAX_LORAS]

        return Composite(("models", "ratios"), [shown, *files, *sliders], read_mixture, fill_mixture, mark)

    def result(self, leaf: Leaf, name: str) -> Composite:
        """A file's name and kind, for the option `save_to`."""
        about = "Name of the file. It is kept with the run, to be downloaded, and is offered in the other tabs."
        with gr.Row(elem_classes=["pick"]):
            stem = gr.Textbox(
                name,
                label=leaf.name,
                info=about,
                max_lines=1,
                scale=4,
                min_width=200,
                interactive=True,
                elem_id=f"{self.prefix}option-{leaf.name}",
                elem_classes=["option"],
            )
            kind = gr.Dropdown(
                list(WEIGHTS[:2]),
                value=WEIGHTS[0],
                label="Kind",
                info="safetensors, unless something old must read it.",
                scale=2,
                min_width=130,
                interactive=True,
                elem_id=f"{self.prefix}kind",
                elem_classes=["option"],
            )

        def mark(problems: Mapping[str, str]) -> list[Any]:
            return [marked(problems.get(leaf.name), about), gr.skip()]

        return Composite((leaf.name,), [stem, kind], read_result, fill_result, mark)

    def take(self, path: str) -> str:
        """Keep an uploaded LoRA; gives its path in the workspace.

        Raises:
            UserError: it is no LoRA, or the disk is full.
        """
        return str(take_lora(self.services.workspace, Path(path)))

    def connect(self, tab: gr.Tab) -> None:
        """Ask for the choices again whenever the tab is opened: jobs, uploads and other tabs make new files."""

        def opened() -> dict[gr.Dropdown, Any]:
            now = {give: give() for give in {give for _, give in self.renewed}}
            return {choice: gr.update(choices=now[give]) for choice, give in self.renewed}

        if self.renewed:
            tab.select(
                opened,
                None,
                [choice for choice, _ in self.renewed],
                api_name=f"{self.prefix}opened",
                **QUIET,
            )

    def _upload_button(self, label: str) -> gr.UploadButton:
        return gr.UploadButton(
            label,
            size="sm",
            min_width=120,
            scale=1,
            # Judged by what comes, not by the browser, whose chooser does not know these endings.
            file_types=list(WEIGHTS),
            elem_id=f"{self.prefix}upload",
        )


def read_mixture(shown: Sequence[Any]) -> dict[str, Any]:
    """Files and ratios out of the rows; a row without a file does not count."""
    half = len(shown) // 2
    files, ratios = shown[1 : half + 1], shown[half + 1 :]
    pairs = [(str(file).strip(), float(ratio or 0)) for file, ratio in zip(files, ratios, strict=True) if file]
    if not pairs:
        return {}
    return {"models": tuple(file for file, _ in pairs), "ratios": tuple(ratio for _, ratio in pairs)}


def fill_mixture(values: Mapping[str, Any]) -> list[Any]:
    """Updates of the rows: which are to be seen, their files, their ratios."""
    models = [str(path) for path in values.get("models") or ()][:MAX_LORAS]
    if not models:
        return [gr.skip()] * (1 + 2 * MAX_LORAS)
    ratios = list(values.get("ratios") or [1.0] * len(models))[:MAX_LORAS]
    count = max(len(models), FIRST_SHOWN)
    return [
        tuple(number < count for number in range(MAX_LORAS)),
        *(gr.update(value=path) for path in [*models, *[None] * (MAX_LORAS - len(models))]),
        *(gr.update(value=ratio) for ratio in [*ratios, *[1.0] * (MAX_LORAS - len(ratios))]),
    ]


def read_result(shown: Sequence[Any]) -> dict[str, Any]:
    """The file's name; an ending that is typed counts, else the chosen one."""
    text, kind = str(shown[0] or "").strip(), str(shown[1] or WEIGHTS[0])
    if not text:
        raise ValueError("give the file a name")
    ending = next((suffix for suffix in WEIGHTS if text.lower().endswith(suffix)), "")
    try:
        stem = slug(text[: len(text) - len(ending)], "save_to")
    except UserError as error:
        raise ValueError(error.message) from error
    return {"save_to": f"{stem}{ending or kind}"}


def fill_result(values: Mapping[str, Any]) -> list[Any]:
    """Updates of name and kind."""
    if "save_to" not in values:
        return [gr.skip()] * 2
    path = Path(values["save_to"])
    known = path.suffix.lower() in WEIGHTS[:2]
    # An ending that cannot be chosen stays in the name.
    return [
        gr.update(value=path.stem if known else path.name),
        gr.update(value=path.suffix.lower()) if known else gr.skip(),
    ]


def _invalid(name: str, problems: Mapping[str, str]) -> list[str]:
    return ["invalid"] if name in problems else []


def _connect_rows(
    picks: Picks, shown: gr.State, slots: list[Slot], rest: tuple[gr.Button, gr.UploadButton, gr.HTML]
) -> None:
    add, upload, told = rest
    prefix = picks.prefix
    files = [slot.file for slot in slots]

    def more(now: tuple[bool, ...]) -> tuple[bool, ...]:
        if all(now):
            return now
        place = now.index(False)
        return tuple(seen or number == place for number, seen in enumerate(now))

    def take(path: str, now: tuple[bool, ...], *chosen: str | None) -> list[Any]:
        try:
            taken, known = picks.take(path), picks.loras()
        except UserError as error:
            return [complaint(error), *[gr.skip()] * (1 + len(slots))]
        updates = [gr.update(choices=known) for _ in slots]
        free = [number for number, file in enumerate(chosen) if not file]
        if taken in chosen or not free:
            return ["", now, *updates]
        # A row that is to be seen comes first.
        place = next((number for number in free if now[number]), free[0])
        updates[place] = gr.update(choices=known, value=taken)
        return ["", tuple(seen or number == place for number, seen in enumerate(now)), *updates]

    def less(place: int) -> Callable[[tuple[bool, ...]], list[Any]]:
        def remove(now: tuple[bool, ...]) -> list[Any]:
            kept = tuple(seen and number != place for number, seen in enumerate(now))
            return [kept, gr.update(value=None), gr.update(value=1.0)]

        return remove

    def seen(now: tuple[bool, ...]) -> list[Any]:
        return [add_button(now), *(gr.update(visible=each) for each in now)]

    add.click(more, shown, shown, api_name=f"{prefix}lora_add", **QUIET)
    upload.upload(take, [upload, shown, *files], [told, shown, *files], api_name=f"{prefix}lora_upload", **QUIET)
    for number, slot in enumerate(slots):
        outputs = [shown, slot.file, slot.slider]
        slot.remove.click(less(number), shown, outputs, api_name=f"{prefix}lora_remove_{number}", **QUIET)
    shown.change(seen, shown, [add, *(slot.row for slot in slots)], api_name=f"{prefix}lora_rows", **QUIET)
