"""The row of presets above a form: load, save, rename, delete; import and export as toml, or as others write it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from backend import bounded
from backend.config import presets
from backend.config.base import Command, leaves, to_toml
from backend.config.dialects.export import to_scripts
from backend.config.dialects.foreign import LORA, SUFFIXES, read_foreign
from backend.config.dialects.reading import Imported
from backend.errors import ConfigError, UserError
from backend.serving import Services
from backend.workspace import make_slug
from tabs.form import Form
from tabs.imports import TITLES, notes_list, told
from tabs.text import complaint, notice

IMPORT_BYTES = 1024 * 1024
FORMATS = """<div class="hint">Import reads a toml of ours or of sd-scripts, a JSON of kohya_ss' GUI, and how a LoRA
file (.safetensors) was trained.</div>"""
# What the row asks about: what is to be done, and the preset's name.
NOTHING, REPLACE, DELETE = ("", ""), "replace", "delete"
# The text comes from the server, the file is made by the browser: no path is involved.
DOWNLOAD = """(name, text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/toml'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""


@dataclass(frozen=True)
class PresetRow:
    """The widgets of the row; `scripts` is there where other programs' configs can be read and written."""

    choice: gr.Dropdown
    name: gr.Textbox
    load: gr.Button
    save: gr.Button
    rename: gr.Button
    delete: gr.Button
    bring: gr.UploadButton
    export: gr.Button
    scripts: gr.Button | None
    confirm: gr.Row
    really: gr.Button
    keep: gr.Button
    asked: gr.State
    answer: gr.HTML
    export_name: gr.Textbox
    export_text: gr.Textbox


def draw_preset_row(
    services: Services, form_class: Any, first: str = "demo", prefix: str = "", foreign: bool = False
) -> PresetRow:
    """Draw the row; `connect_presets` brings it to life when the form is there.

    Args:
        services: what the tabs work with.
        form_class: the command that the presets configure.
        first: the preset that is chosen at first, if there is one of this name.
        prefix: what the elements' ids begin with, where a page has several rows.
        foreign: configs of other programs can be imported, and one exported for sd-scripts.
    """
    known = choices(services, form_class)
    names = [value for _, value in known]
    with gr.Column(elem_classes=["card"], elem_id=f"{prefix}section-preset"):
        with gr.Row():
            choice = gr.Dropdown(
                known,
                value=first if first in names else None,
                label="Preset",
                info="Fills the form; the rest goes to its defaults.",
                elem_id=f"{prefix}preset",
                scale=3,
            )
            name = gr.Textbox(
                label="Name",
                info="To save the form under, or to rename to.",
                placeholder="my-preset",
                max_lines=1,
                elem_id=f"{prefix}preset-name",
                scale=2,
            )
        with gr.Row(elem_id=f"{prefix}preset-buttons"):
            load, save, rename, delete = (
                gr.Button(word, size="sm", min_width=80, elem_id=f"{prefix}preset-{word.lower()}")
                for word in ("Load", "Save", "Rename", "Delete")
            )
            files = None if foreign else _draw_files(prefix, foreign)
        if files is None:
            with gr.Row():
                files = _draw_files(prefix, foreign)
        if foreign:
            gr.HTML(FORMATS, padding=False)
        answer = gr.HTML(elem_id=f"{prefix}preset-answer", padding=False)
        with gr.Row(visible=False, elem_id=f"{prefix}preset-confirm") as confirm:
            really = gr.Button("Delete it for good", variant="stop", size="sm", elem_id=f"{prefix}preset-really")
            keep = gr.Button("Keep it", size="sm", elem_id=f"{prefix}preset-keep")
        asked = gr.State(NOTHING)
        export_name, export_text = gr.Textbox(visible=False), gr.Textbox(visible=False)
    return PresetRow(
        *(choice, name, load, save, rename, delete, *files),
        *(confirm, really, keep, asked, answer, export_name, export_text),
    )


def _draw_files(prefix: str, foreign: bool) -> tuple[gr.UploadButton, gr.Button, gr.Button | None]:
    """The buttons that take a file and give one, the last only where other programs' configs are known."""
    bring = gr.UploadButton(
        "Import" if foreign else "Import toml",
        size="sm",
        min_width=110,
        file_types=list(SUFFIXES) if foreign else [".toml"],
        elem_id=f"{prefix}preset-import",
    )
    export = gr.Button("Export toml", size="sm", min_width=110, elem_id=f"{prefix}preset-export")
    if not foreign:
        return bring, export, None
    scripts = gr.Button("Export for sd-scripts", size="sm", min_width=150, elem_id=f"{prefix}preset-export-scripts")
    return bring, export, scripts


def choices(services: Services, form_class: Any) -> list[tuple[str, str]]:
    """A command's presets as (label, name)."""
    known = presets.listed(form_class, services.workspace.root)
    return [(f"{preset.name} (shipped)" if preset.shipped else preset.name, preset.name) for preset in known]


def connect_presets(services: Services, row: PresetRow, form: Form) -> None:
    """Connect the row with its form."""
    root, kind = services.workspace.root, form.command_class
    _connect_toml(row, form, root)
    unfilled = [gr.skip()] * len(form.inputs)
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def chosen(name: str | None) -> Any:
        return gr.update(choices=choices(services, kind), value=name)

    def load(name: str | None) -> list[Any]:
        try:
            if not name:
                raise UserError("choose a preset first", "preset")
            lines: list[str] = []
            values = presets.read(kind, name, root, lines)
            return [notice(" ".join(f"{line}." for line in lines)) if lines else "", *form.fill(values)]
        except UserError as error:
            return [complaint(error), *unfilled]

    # Each gives updates of `answers`.
    def save(name: str, *shown: Any) -> list[Any]:
        try:
            taken = presets.existing(kind, name, root)
            if taken is not None:
                told = f"There is a preset {taken.name} already. Replace it, or give another name."
                return [notice(told), gr.skip(), *ask(REPLACE, taken.name)]
            saved, left = write_preset(form, shown, name, root)
        except UserError as error:
            return [complaint(error), gr.skip(), *hidden()]
        return [notice(f"Saved as {saved}.{left}"), chosen(saved), *hidden()]

    def really(asked: tuple[str, str], *shown: Any) -> list[Any]:
        (what, name), left = asked, ""
        try:
            if what == REPLACE:
                name, left = write_preset(form, shown, name, root)
            elif what == DELETE:
                presets.delete(kind, name, root)
            else:
                raise UserError("press Save or Delete first", "preset")
        except UserError as error:
            return [complaint(error), gr.skip(), *hidden()]
        if what == DELETE:
            return [notice(f"{name} is deleted."), chosen(None), *hidden()]
        return [notice(f"{name} is replaced by what the form says.{left}"), chosen(name), *hidden()]

    def rename(old: str | None, name: str) -> list[Any]:
        try:
            if not old:
                raise UserError("choose a preset first", "preset")
            preset = presets.rename(kind, old, name, root)
        except UserError as error:
            return [complaint(error), gr.skip()]
        return [notice(f"{old} is now called {preset.name}."), chosen(preset.name)]

    filled = [row.answer, *form.inputs]
    gr.on(
        [row.choice.input, row.load.click],
        load,
        row.choice,
        filled,
        api_name=f"{kind.command}_preset_load",
        **private,
    )
    answers = [row.answer, row.choice, row.confirm, row.really, row.asked]
    command = kind.command
    row.save.click(save, [row.name, *form.inputs], answers, api_name=f"{command}_preset_save", **private)
    row.rename.click(
        rename, [row.choice, row.name], [row.answer, row.choice], api_name=f"{command}_preset_rename", **private
    )
    row.delete.click(asker(kind, root), row.choice, answers, api_name=f"{command}_preset_ask", **private)
    row.keep.click(lambda: ["", gr.skip(), *hidden()], None, answers, api_name=f"{command}_preset_keep", **private)
    row.really.click(really, [row.asked, *form.inputs], answers, api_name=f"{command}_preset_delete", **private)


def asker(kind: type[Command], root: Path) -> Callable[[str | None], list[Any]]:
    """What Delete does: asks about a preset of the user's own, and says why where there is nothing to ask."""

    def ask_delete(name: str | None) -> list[Any]:
        try:
            if not name or presets.existing(kind, name, root) is None:
                raise UserError("choose a preset of your own first", "preset")
        except UserError as error:
            return [complaint(error), gr.skip(), *hidden()]
        return ["", gr.skip(), *ask(DELETE, name)]

    return ask_delete


def ask(what: str, name: str) -> list[Any]:
    """Updates of the confirming row, its button and what is asked, which put a question about a preset."""
    words = f"Replace {name}" if what == REPLACE else f"Delete {name} for good"
    return [gr.update(visible=True), gr.update(value=words), (what, name)]


def hidden() -> list[Any]:
    """The same, to take the question away."""
    return [gr.update(visible=False), gr.skip(), NOTHING]


def warning_of(values: Mapping[str, Any], root: Path) -> str:
    """Comments for the head of an exported toml that say what in it holds in this workspace only."""
    lines = []
    for name, value in values.items():
        if isinstance(value, str) and Path(value).is_relative_to(root):
            lines.append(f"# {name} names a file of this workspace; elsewhere, bring it along and change the path.")
            try:
                text = bounded.read_text(value, None, limit=IMPORT_BYTES) if name == "sample_prompts" else ""
            except UserError:
                text = ""
            lines += [f"#   {line}" for line in bounded.split_lines(text)]
    return "\n".join([*lines, ""]) if lines else ""


def _connect_toml(row: PresetRow, form: Form, root: Path) -> None:
    kind = form.command_class
    unfilled = [gr.skip()] * len(form.inputs)
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def bring(path: str) -> list[Any]:
        file = Path(path)
        try:
            answer, values = _read(form, file, foreign=row.scripts is not None)
        except UserError as error:
            return [complaint(error), *unfilled]
        finally:
            file.unlink(missing_ok=True)
        return [answer, *(form.fill(values) if values else unfilled)]

    def export(name: str | None, *shown: Any) -> list[Any]:
        try:
            lines: list[str] = []
            values = presets.portable(kind, presets.checked(kind, read_changed(form, shown), ""), lines)
            text = warning_of(values, root) + to_toml(values, kind)
        except UserError as error:
            return [complaint(error), "", ""]
        answer = notice(" ".join(f"{line}." for line in lines)) if lines else ""
        return [answer, f"{make_slug(name or kind.command)}.toml", text]

    def export_scripts(name: str | None, *shown: Any) -> list[Any]:
        try:
            values = presets.checked(kind, read_changed(form, shown), "")
        except UserError as error:
            return [complaint(error), "", ""]
        text, notes = to_scripts(values)
        lists = [notes_list(title, [note for note in notes if note.kind == word]) for word, title in TITLES.items()]
        answer = f'<div class="told">{"".join(lists)}</div>' if notes else ""
        return [answer, f"{make_slug(name or kind.command)}-sd-scripts.toml", warning_of(values, root) + text]

    row.bring.upload(bring, row.bring, [row.answer, *form.inputs], api_name=f"{kind.command}_preset_import", **private)
    exported = [row.export_name, row.export_text]

    def connect_export(button: gr.Button, make: Callable[..., list[Any]], name: str) -> None:
        button.click(
            make,
            [row.choice, *form.inputs],
            [row.answer, *exported],
            api_name=f"{kind.command}_{name}",
            **private,
        ).then(
            None,
            exported,
            None,
            js=f"(name, text) => {{ if (text) ({DOWNLOAD})(name, text); }}",
            api_name=f"{kind.command}_{name}_download",
            **private,
        )

    connect_export(row.export, export, "preset_export")
    if row.scripts is not None:
        connect_export(row.scripts, export_scripts, "preset_export_scripts")


def _read(form: Form, file: Path, foreign: bool) -> tuple[str, dict[str, Any]]:
    """What an uploaded file says to a form, and the report of it.

    Raises:
        UserError: it is no config, or a toml of ours with a mistake where only those are read.
    """
    if file.suffix.lower() != LORA and file.stat().st_size > IMPORT_BYTES:
        raise UserError("is too large for a config", file.name)
    kind, shown = form.command_class, form.names
    if not foreign:
        lines: list[str] = []
        text = bounded.decoded(bounded.read_bytes(file, file.name, "toml", IMPORT_BYTES), file.name, file.name)
        values = presets.imported(kind, text, file.name, lines)
        ignored = [name for name in values if name not in shown]
        more = f" Set by the page itself: {', '.join(ignored)}." if ignored else ""
        more += "".join(f" {line}." for line in lines)
        return notice(f"{len(values)} options taken from {file.name}.{more}"), values
    found: Imported = read_foreign(file, file.name)
    values = dict(found.values)
    if found.prompts:
        # The form shows prompts by their text, and keeps them as a file when they are used.
        values["sample_prompts"] = found.prompts
    by_page = [name for name in values if name not in shown]
    kept = [name for name in shown if form.keeps(name, values)]
    return told(found, file.name, by_page, kept), values


def write_preset(form: Form, shown: Sequence[Any], name: str, root: Path) -> tuple[str, str]:
    """Save what a form says as a preset; its name, and in sentences what holds on one machine alone and is left out.

    Raises:
        UserError: the form or the name is wrong, or the preset cannot be written.
    """
    kind, lines = form.command_class, []
    preset = presets.save(kind, name, presets.portable(kind, read_changed(form, shown), lines), root)
    return preset.name, "".join(f" {line}." for line in lines)


def read_changed(form: Form, shown: Sequence[Any]) -> Mapping[str, Any]:
    """What a form says beyond the defaults.

    Raises:
        ConfigError: a text says no value.
    """
    values, problems = form.read(shown)
    if problems:
        raise ConfigError(list(problems.items()))
    known = leaves(form.command_class)
    return {
        name: value
        for name, value in values.items()
        if value is not None and (known[name].required or not _is_default(value, known[name].default))
    }


def _is_default(value: Any, default: Any) -> bool:
    # A table is read as lines; an empty one is its default all the same.
    return value == default or (not value and not default and type(default) in (dict, tuple))
