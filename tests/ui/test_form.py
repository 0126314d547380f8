"""A form from any config class, and its values back."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import gradio as gr
import pytest
from pydantic import Field, field_validator

from backend.config import base
from backend.config.base import Command, Option, Section, leaves
from backend.config.generate import GenImg
from backend.config.text import read_literals
from backend.config.tools import ConvertModel
from backend.config.train import TrainNetwork
from tabs.form import Composite, Form, draw_form, from_widget, marked, to_widget


class Cloth(Section):
    """Cloth."""

    name: str = "linen"
    """What it is called."""

    width: int = Field(3, ge=1)
    """How wide."""

    seed: int | None = Field(None, le=2**63 - 1)
    """Too large for a browser's numbers."""

    tension: float | None = None
    """How tight."""

    folder: Annotated[Path | None, Option(advanced=True)] = None
    """Where it lies."""

    weave: Literal["plain", "twill"] | None = None
    """How it is woven."""

    dyed: bool = False
    """Whether it is dyed."""

    ratios: tuple[float, ...] = ()
    """Several numbers."""

    extras: dict[str, Any] = Field(default_factory=dict)
    """Anything else."""

    @field_validator("extras", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> dict[str, Any]:
        return read_literals(value)


class Weave(Command):
    """Weave."""

    command: ClassVar[str] = "weave"
    cloth: Cloth


def draw(command_class: type[Command], **options: Any) -> Form:
    with gr.Blocks():
        return draw_form(command_class, **options)


VALUES: dict[str, Any] = {
    "name": "  wool = [x]  ".strip(),
    "width": 7,
    "seed": 2**63 - 1,
    "tension": 1e-7,
    "folder": Path("/a b/c"),
    "weave": "twill",
    "dyed": True,
    "ratios": (1.0, -1e-3),
    "extras": {"betas": (0.9, 0.99), "fused": True, "word": "x y"},
}


def test_values_survive_the_form() -> None:
    form = draw(Weave)
    shown = [to_widget(form.leaves[name], VALUES[name]) for name in form.widgets]
    values, problems = form.read(shown)
    assert problems == {}
    assert values["seed"] == 2**63 - 1 and isinstance(form.widgets["seed"], gr.Textbox)
    assert {**values, "extras": None} == {**VALUES, "folder": "/a b/c", "extras": None}
    assert values["extras"] == ["betas=(0.9, 0.99)", "fused=True", "word=x y"]
    assert base.values(base.resolve(Weave, values)) == VALUES


def test_defaults_survive_the_form_of_every_command() -> None:
    for command_class in (Weave, GenImg, ConvertModel, TrainNetwork):
        form = draw(command_class)
        assert list(form.widgets) == list(leaves(command_class))
        values, problems = form.read([to_widget(leaf, leaf.default) for leaf in form.leaves.values()])
        assert problems == {}
        left = base.problems(command_class, values)
        asked = {name for name, leaf in leaves(command_class).items() if leaf.required}
        # gen_img wants one of two options, which no default can be.
        assert set(left) - {"prompt"} == asked


def test_a_text_with_suggestions_is_a_choice_that_takes_others() -> None:
    form = draw(TrainNetwork)
    widget, place = form.widgets["optimizer_type"], list(form.widgets).index("optimizer_type")
    assert isinstance(widget, gr.Dropdown) and widget.allow_custom_value and widget.value == "AdamW"
    assert ("Prodigy", "Prodigy") in widget.choices
    shown = [to_widget(leaf, leaf.default) for leaf in form.leaves.values()]
    for typed, meant in (("my.own.Optimizer", "my.own.Optimizer"), ("dadaptadam", "DAdaptAdam")):
        values, problems = form.read([*shown[:place], typed, *shown[place + 1 :]])
        assert problems == {}
        asked = {"pretrained_model_name_or_path": "m", "dataset_config": "d", "output_dir": "o"}
        assert base.resolve(TrainNetwork, values | asked).optim.optimizer == meant


def test_numbers_in_a_list_are_read_as_toml_has_them_and_none_is_unset() -> None:
    leaf = leaves(TrainNetwork)["face_crop_aug_range"]
    for text in ("[2.0, 4.0]", "2,4", "2\n 4 "):
        assert from_widget(leaf, text) == (2.0, 4.0)
    assert from_widget(leaf, "") is None
    assert from_widget(leaves(TrainNetwork)["text_encoder_lr"], " ") == ()


def test_widgets_start_with_the_defaults() -> None:
    form = draw(TrainNetwork)
    assert form.widgets["learning_rate"].value == 1e-4
    assert form.widgets["mixed_precision"].value == "no"
    assert form.widgets["xformers"].value is False
    assert form.widgets["save_precision"].value == ""


@pytest.mark.parametrize(
    ("name", "shown", "value"),
    [
        ("width", 4.0, 4),
        ("width", 4.5, 4.5),
        ("width", None, None),
        ("name", "", ""),
        ("folder", " ", None),
        ("weave", "", None),
        ("ratios", "1\n\n 2e-3 ", (1.0, 0.002)),
        ("seed", "", None),
    ],
)
def test_what_is_read_from_a_widget(name: str, shown: Any, value: Any) -> None:
    read = from_widget(leaves(Weave)[name], shown)
    assert (read, type(read)) == (value, type(value))


def test_text_that_is_no_value_is_a_problem_of_its_field() -> None:
    form = draw(Weave)
    shown = {name: to_widget(leaf, leaf.default) for name, leaf in form.leaves.items()}
    _, problems = form.read(list({**shown, "seed": "12x", "ratios": "1\ntwo"}.values()))
    assert set(problems) == {"seed", "ratios"}
    assert "must be an integer" in problems["seed"]


def test_filling_goes_to_defaults_and_leaves_required_fields() -> None:
    form = draw(TrainNetwork)
    updates = dict(zip(form.widgets, form.fill({"network_dim": 9}), strict=True))
    assert updates["network_dim"]["value"] == 9
    assert updates["learning_rate"]["value"] == 1e-4
    assert "value" not in updates["dataset_config"]
    # Unless an alternative takes its place.
    updates = dict(zip(form.widgets, form.fill({"train_data_dir": "a/b"}), strict=True))
    assert (updates["dataset_config"]["value"], updates["train_data_dir"]["value"]) == ("", "a/b")


def test_marks_come_and_go() -> None:
    form = draw(Weave)
    marked = dict(zip(form.widgets, form.mark({"width": "must be more"})[: len(form.widgets)], strict=True))
    assert (marked["width"]["info"], marked["width"]["elem_classes"]) == ("must be more", ["option", "invalid"])
    assert (marked["name"]["info"], marked["name"]["elem_classes"]) == ("What it is called.", ["option"])


def test_a_mark_unfolds_its_section_and_one_within_an_option_stands_at_it() -> None:
    form = draw(Weave)
    assert len(form.mark({})) == len(form.markable)
    assert form.mark({})[len(form.inputs) :] == [gr.skip()] * 2
    section, advanced = form.mark({"folder": "is not there"})[len(form.inputs) :]
    assert section["open"] is True and advanced["open"] is True and advanced["visible"] is True
    section, advanced = form.mark({"extras.fused": "must be true or false"})[len(form.inputs) :]
    assert section["open"] is True and "open" not in advanced
    marked = dict(zip(form.widgets, form.mark({"extras.fused": "must be true or false"}), strict=False))
    assert marked["extras"]["info"] == "fused must be true or false" and "invalid" in marked["extras"]["elem_classes"]


def test_search_finds_by_name_and_help() -> None:
    form = draw(Weave)
    names = list(form.widgets)

    def hits(query: str) -> set[str]:
        updates = form.search(query)[len(form.groups) :]
        return {name for name, update in zip(names, updates, strict=True) if update["visible"] is True}

    assert hits("woven") == {"weave"}
    assert hits("how WIDE") == {"width"}
    assert hits("nothing of the sort") == set()
    assert hits("") == set(names)
    opened = [update["open"] for update in form.search("lies")[: len(form.groups)]]
    assert opened == [True, True]
    assert [update["open"] for update in form.search("")[: len(form.groups)]] == [True, False]


def test_a_codec_and_a_widget_of_the_tabs_own() -> None:
    with gr.Blocks():
        form = draw_form(Weave, skip=("name",))
        form.adopt("name", gr.Textbox())
    form.codecs["name"] = (str.upper, str.lower)
    assert list(form.widgets)[-1] == "name"
    assert form.fill({"name": "abc"})[-1]["value"] == "ABC"
    shown = [to_widget(leaf, leaf.default) for leaf in form.leaves.values()]
    assert form.read([*shown[:-1], "XYZ"])[0]["name"] == "xyz"


def pair(leaf: base.Leaf) -> Composite:
    """Two fields for `ratios`."""
    fields: list[Any] = [gr.Number(1), gr.Number(2)]
    return Composite(
        ("ratios",),
        fields,
        lambda shown: {"ratios": tuple(shown)} if shown[0] else {},
        lambda values: [gr.update(value=value) for value in values.get("ratios", (0, 0))],
        lambda problems: [marked(problems.get("ratios"), "help"), gr.skip()],
    )


def test_several_widgets_stand_for_one_option() -> None:
    form = draw(Weave, skip=("extras",), special={"ratios": pair}, prefix="x-")
    assert "ratios" not in form.widgets and "ratios" in form.names
    shown = [to_widget(leaf, leaf.default) for name, leaf in form.leaves.items() if name != "ratios"]
    assert form.read([*shown, 3.0, 4.0])[0]["ratios"] == (3.0, 4.0)
    assert "ratios" not in form.read([*shown, 0, 4.0])[0]
    assert [update["value"] for update in form.fill({"ratios": (5, 6)})[-2:]] == [5, 6]
    marks = form.mark({"ratios": "too many"})[: len(form.inputs)]
    assert len(marks) == len(form.inputs) and marks[-2]["info"] == "too many"
    assert {widget.elem_id for widget in form.widgets.values()} >= {"x-option-name", "x-option-width"}


def test_a_form_may_begin_with_something_else_than_the_defaults() -> None:
    form = draw(Weave, first={"width": 9, "dyed": True})
    assert form.widgets["width"].value == 9 and form.widgets["dyed"].value is True
    assert form.widgets["name"].value == "linen"


def test_a_mark_that_goes_leaves_the_help_of_the_widget_itself() -> None:
    def own(leaf: base.Leaf) -> gr.Textbox:
        return gr.Textbox(info="my own words")

    form = draw(Weave, special={"name": own})
    assert dict(zip(form.widgets, form.mark({}), strict=False))["name"]["info"] == "my own words"


def test_lines_end_where_lines_end_and_nowhere_else() -> None:
    leaf = leaves(TrainNetwork)["network_args"]
    assert from_widget(leaf, "conv_dim=4\r\nunit=2\x0bx\rb=\u2028c") == ["conv_dim=4", "unit=2\x0bx", "b=\u2028c"]
