"""A command's options as a form: widgets from the config class, values back, presets in, mistakes marked.

Nothing here knows any option: a field that is added to a section appears by itself.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.bounded import split_lines
from backend.config.base import Command, Leaf, leaves, parse_text
from tabs.text import empty

# Above this a browser's numbers are no longer exact.
EXACT = 2**53
UNSET = "unset"
NO_HIT = "Try another word, or a part of it; an empty field shows every option again."


def plain(update: Mapping[str, Any]) -> dict[str, Any]:
    """What an update changes, by name; nothing for one that skips."""
    return {key: value for key, value in update.items() if key != "__type__"}


def to_widget(leaf: Leaf, value: Any) -> Any:
    """What a leaf's widget shows for a value of the config."""
    if leaf.kind == "bool":
        return bool(value)
    if value is None:
        return "" if leaf.kind == "choice" or not is_number(leaf) else None
    if leaf.kind == "list":
        return "\n".join(str(item) for item in value)
    if leaf.kind == "table":
        return "\n".join(f"{key}={item if isinstance(item, str) else repr(item)}" for key, item in value.items())
    return value if is_number(leaf) or leaf.kind == "choice" else str(value)


def from_widget(leaf: Leaf, shown: Any) -> Any:
    """The config's value for what a leaf's widget shows; None where nothing is given.

    Raises:
        ValueError: saying what is expected.
    """
    if leaf.kind == "bool":
        return bool(shown)
    if is_number(leaf):
        whole = leaf.kind == "int" and isinstance(shown, float) and shown.is_integer()
        return int(shown) if whole else shown
    text = "" if shown is None else str(shown).strip()
    if leaf.kind == "list":
        if is_number(leaf.element):
            # Also as the help and toml write several: [2.0, 4.0].
            text = text.strip("[]()").replace(",", "\n")
        items = tuple(parse_text(leaf.element, line.strip()) for line in split_lines(text) if line.strip())
        return items or (None if leaf.optional else ())
    if leaf.kind == "table":
        return [line.strip() for line in split_lines(text) if line.strip()]
    if not text:
        return None if leaf.optional or leaf.required or leaf.kind != "str" else ""
    return parse_text(leaf, text)


def is_number(leaf: Leaf) -> bool:
    """Whether a leaf is shown as a number; integers that a browser cannot hold exactly are shown as text."""
    return leaf.kind == "float" or (leaf.kind == "int" and (leaf.le is None or leaf.le <= EXACT))


@dataclass(frozen=True)
class Composite:
    """Several widgets that together stand for one option or more.

    Attributes:
        names: of the options.
        components: what is read, filled and marked, in this order.
        read: the options' values from what the components show, without those that are not given; a ValueError says
            what is wrong.
        fill: updates of the components that show values, by option name; those that are not among them stay.
        mark: updates of the components that show problems, by option name, and take away those of before.
    """

    names: tuple[str, ...]
    components: list[Component]
    read: Callable[[Sequence[Any]], dict[str, Any]]
    fill: Callable[[Mapping[str, Any]], list[Any]]
    mark: Callable[[Mapping[str, str]], list[Any]]


Maker = Callable[[Leaf], Component | Composite]


@dataclass
class Form:
    """The widgets of a command's options, in the order of its sections.

    Attributes:
        command_class: whose options these are.
        leaves: the options that have a widget.
        widgets: by option name, of the options that have one of their own.
        composites: of the options that share theirs.
        codecs: by option name, how a widget of the tab's own shows a value and how it is read back.
        groups: the accordions, each with the names of the options in it, and whether it is open when nothing is sought.
    """

    command_class: type[Command]
    leaves: dict[str, Leaf]
    widgets: dict[str, Component] = field(default_factory=dict)
    composites: list[Composite] = field(default_factory=list)
    codecs: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = field(default_factory=dict)
    groups: list[tuple[gr.Accordion, tuple[str, ...], bool]] = field(default_factory=list)

    @property
    def inputs(self) -> list[Component]:
        """The widgets in the order in which `read` takes their values."""
        return [*self.widgets.values(), *(each for composite in self.composites for each in composite.components)]

    @property
    def names(self) -> tuple[str, ...]:
        """The options that the form shows."""
        return (*self.widgets, *(name for composite in self.composites for name in composite.names))

    def read(self, shown: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The config's values and, where a text says no value, the problems, both by option name."""
        values, problems = {}, {}
        place = len(self.widgets)
        for name, value in zip(self.widgets, shown[:place], strict=True):
            try:
                values[name] = self._read_one(name, value)
            except ValueError as error:
                problems[name] = str(error)
        for composite in self.composites:
            end = place + len(composite.components)
            try:
                values |= composite.read(shown[place:end])
            except ValueError as error:
                problems[composite.names[0]] = str(error)
            place = end
        return values, problems

    def fill(self, values: Mapping[str, Any]) -> list[Any]:
        """Updates that show values; an option that is not among them goes to its default, a required one stays."""
        own = [
            gr.skip()
            if self.keeps(name, values)
            else gr.update(value=self._show_one(leaf, values.get(name, leaf.default)))
            for name, leaf in ((name, self.leaves[name]) for name in self.widgets)
        ]
        return own + [update for composite in self.composites for update in composite.fill(values)]

    def keeps(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether `fill` leaves an option as it is: a required one that neither is among the values nor replaced."""
        leaf = self.leaves[name]
        return leaf.required and not any(each in values and each in self.names for each in (name, *leaf.alternatives))

    def lock(self) -> None:
        """Take no input until `unlocked` updates arrive: what is typed before the page is filled would be lost."""
        for component in self.widgets.values():
            component.interactive = False

    def open_numbers(self, page: gr.Blocks) -> None:
        """Have numbers that are unset at first shown so: the browser takes one that comes without a value for a 0."""
        bare = [each for each in self.widgets.values() if isinstance(each, gr.Number) and each.value is None]
        for number in bare:
            number.interactive = False
        if bare:
            page.load(
                lambda: {number: gr.update(value=None, interactive=True) for number in bare},
                None,
                bare,
                show_progress="hidden",
                api_name=f"{self.command_class.command}_numbers",
                api_visibility="private",
            )

    def unlocked(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The updates of `fill`, which open the widgets as well, so that none can be edited before it has its value."""
        return [gr.update(**{**update, "interactive": True}) for update in map(plain, self.fill(values))]

    def adopt(self, name: str, component: Component) -> None:
        """Take a widget that the tab has drawn elsewhere for an option that `draw_form` has skipped."""
        self.leaves[name] = leaves(self.command_class)[name]
        self.widgets[name] = component

    def _show_one(self, leaf: Leaf, value: Any) -> Any:
        return self.codecs[leaf.name][0](value) if leaf.name in self.codecs else to_widget(leaf, value)

    def _read_one(self, name: str, shown: Any) -> Any:
        return self.codecs[name][1](shown) if name in self.codecs else from_widget(self.leaves[name], shown)

    def mark(self, problems: Mapping[str, str]) -> list[Any]:
        """Updates of `markable` that show each problem at its field, and take away what was marked before.

        What is wrong with an argument within an option, "network_args.unit", stands at the option. A section that was
        folded away is opened, also where a search has left it out.
        """
        at: dict[str, str] = {}
        for place, message in problems.items():
            name, _, argument = place.partition(".")
            at.setdefault(name, f"{argument} {message}" if argument else message)
        own = [
            marked(at.get(name), widget.info) | ({"visible": True} if name in at else {})
            for name, widget in self.widgets.items()
        ]
        own += [update for composite in self.composites for update in composite.mark(at)]
        boxes = [
            gr.update(open=True, visible=True) if at.keys() & set(names) else gr.skip() for _, names, _ in self.groups
        ]
        return own + boxes

    @property
    def markable(self) -> list[Any]:
        """What `mark` updates."""
        return [*self.inputs, *(accordion for accordion, _, _ in self.groups)]

    def search(self, query: str) -> list[Any]:
        """Updates of `searched` that leave the options with every word in name or help, and open their sections."""
        words = query.lower().split()
        hits = {name for name, leaf in self.leaves.items() if _matches(leaf, words)}
        accordions = [
            gr.update(open=bool(words) or opened, visible=True if hits & set(names) else "hidden")
            for _, names, opened in self.groups
        ]
        return accordions + [gr.update(visible=True if name in hits else "hidden") for name in self._found]

    def finds(self, query: str) -> bool:
        """Whether a search leaves any option to be seen."""
        hits = {name for name, leaf in self.leaves.items() if _matches(leaf, query.lower().split())}
        return any(hits & set(names) for _, names, _ in self.groups)

    @property
    def searched(self) -> list[Any]:
        """What `search` updates."""
        return [accordion for accordion, _, _ in self.groups] + [self.widgets[name] for name in self._found]

    @property
    def _found(self) -> list[str]:
        """The options that a search leaves out or shows: those that stand in a section."""
        grouped = {name for _, names, _ in self.groups for name in names}
        return [name for name in self.widgets if name in grouped]


def marked(problem: str | None, help_text: str | None, *classes: str) -> dict[str, Any]:
    """The update of a widget that shows a problem in place of its help, or takes one away."""
    kept = ["option", *classes]
    if problem is None:
        # None would leave what stands there.
        return gr.update(info=help_text or "", elem_classes=kept)
    return gr.update(info=problem, elem_classes=[*kept, "invalid"])


def draw_form(
    command_class: type[Command],
    skip: Collection[str] = (),
    special: Mapping[str, Maker] | None = None,
    opened: Collection[str] = (),
    below: Mapping[str, Callable[[], None]] | None = None,
    first: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> Form:
    """Make the widgets within the current Blocks: a section's basic options in sight, the advanced ones folded away.

    Args:
        command_class: whose options.
        skip: options that the tab sets by itself.
        special: options, by their widget hint or name, that the tab draws in a way of its own.
        opened: sections, by attribute name, that are unfolded at first; all if none is named.
        below: draw what the tab has below an option that stands alone in its row.
        first: what the form shows at first where that is not the default.
        prefix: what the elements' ids begin with, where a page has several forms.
    """
    shown = first or {}
    # An option without a hint finds the plain widget.
    makers: dict[str, Maker] = {"": lambda leaf: widget(leaf, prefix, shown.get(leaf.name, leaf.default))}
    makers |= special or {}
    known = {name: leaf for name, leaf in leaves(command_class).items() if name not in skip}
    form = Form(command_class, known)
    for section, members in groupby(known.values(), key=lambda leaf: leaf.section):
        group = list(members)
        unfolded = not opened or section in opened
        with gr.Accordion(
            group[0].title, open=unfolded, elem_classes=["section"], elem_id=f"{prefix}section-{section}"
        ) as box:
            form.groups.append((box, tuple(leaf.name for leaf in group), unfolded))
            _draw_options(form, [leaf for leaf in group if not leaf.advanced], makers, below or {})
            advanced = [leaf for leaf in group if leaf.advanced]
            if advanced:
                with gr.Accordion("Advanced", open=False, elem_classes=["advanced"]) as more:
                    form.groups.append((more, tuple(leaf.name for leaf in advanced), False))
                    _draw_options(form, advanced, makers, below or {})
    # Rows put switches behind the other options; everyone else counts in the order of declaration.
    form.widgets = {name: form.widgets[name] for name in known if name in form.widgets}
    return form


def draw_search(form: Form) -> None:
    """A field that shows only the options that are looked for. To be called above or below `draw_form`'s place."""
    query = gr.Textbox(
        placeholder="Find an option: rank, learning rate, sample …",
        show_label=False,
        container=False,
        elem_id="find-option",
        max_lines=1,
    )
    nothing = gr.HTML(elem_id="find-nothing", padding=False)

    def find(words: str) -> list[Any]:
        said = "" if form.finds(words) else empty(f"No option has “{words.strip()}” in its name or help", NO_HIT)
        return [said, *form.search(words)]

    query.change(
        find,
        query,
        [nothing, *form.searched],
        show_progress="hidden",
        api_name="find_option",
        api_visibility="private",
    )


def widget(leaf: Leaf, prefix: str, shown: Any) -> Component:
    """The widget of one option, with what it shows at first and help."""
    common: dict[str, Any] = {
        "label": leaf.name,
        "info": leaf.help,
        "elem_id": f"{prefix}option-{leaf.name}",
        "elem_classes": ["option"],
        "min_width": 210,
        "interactive": True,
    }
    value = to_widget(leaf, shown)
    if leaf.kind == "bool":
        return gr.Checkbox(value, **common)
    if leaf.kind == "choice":
        none = [(UNSET, "")] if leaf.optional else []
        return gr.Dropdown([*none, *((choice, choice) for choice in leaf.choices)], value=value, **common)
    if leaf.suggestions:
        return gr.Dropdown(list(leaf.suggestions), value=value, allow_custom_value=True, **common)
    if is_number(leaf):
        return gr.Number(value, step=_step(leaf), placeholder=UNSET if leaf.optional else "", **common)
    several = leaf.kind in ("list", "table") or leaf.widget == "text"
    unset = leaf.optional or leaf.kind == "list"
    placeholder = "key=value, one a line" if leaf.kind == "table" else UNSET if unset else ""
    lines = {"lines": 1, "max_lines": 8 if several else 1}
    return gr.Textbox(value, placeholder=placeholder, **lines, **common)


def _step(leaf: Leaf) -> float:
    """What an arrow of a number field adds: 1, or the size of a small default."""
    if leaf.kind == "int" or not leaf.default:
        return 1
    return min(1.0, 10.0 ** math.floor(math.log10(abs(leaf.default))))


def _draw_options(
    form: Form,
    group: list[Leaf],
    makers: Mapping[str, Maker],
    below: Mapping[str, Callable[[], None]],
) -> None:
    def make(leaf: Leaf) -> None:
        made = (makers.get(leaf.name) or makers.get(leaf.widget) or makers[""])(leaf)
        if isinstance(made, Composite):
            form.composites.append(made)
        else:
            form.widgets[leaf.name] = made

    own = {name for name in makers if name}
    wide = [leaf for leaf in group if leaf.widget == "text" or leaf.suggestions or own & {leaf.name, leaf.widget}]
    several = [leaf for leaf in group if leaf.kind in ("list", "table") and leaf not in wide]
    switches = [leaf for leaf in group if leaf.kind == "bool" and leaf not in wide]
    others = [leaf for leaf in group if leaf not in wide + several + switches]
    # Full width, or side by side.
    for leaf in wide:
        make(leaf)
    if others:
        with gr.Row(elem_classes=["options"]):
            for leaf in others:
                make(leaf)
    for leaf in several:
        make(leaf)
        if leaf.name in below:
            below[leaf.name]()
    if switches:
        with gr.Row(elem_classes=["options"]):
            for leaf in switches:
                make(leaf)


def _matches(leaf: Leaf, words: Sequence[str]) -> bool:
    text = f"{leaf.name} {leaf.name.replace('_', ' ')} {leaf.title} {leaf.help} {' '.join(leaf.aliases)}".lower()
    return all(word in text for word in words)
