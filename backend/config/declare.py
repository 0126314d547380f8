"""How options are declared: a `Section` is a pydantic model of one group, a `Command` is made of sections.

Everything else derives from the fields of a section: flags and `--help` (argv.py), toml (toml.py), the merged and
validated config (merge.py), the web form and docs/options.md (both read `leaves`). A field is

    learning_rate: float = Field(1e-4, gt=0)
    \"\"\"Help text, shown by --help and beside the form's widget.\"\"\"

and `Annotated[type, Option(...)]` says what a type and its bounds cannot. Types of a field: bool, int, float, str,
Path, Literal, a tuple of these, `dict[str, Any]` for a table of key=value, and `X | None` with the default None.
"""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from backend.config.docstrings import attribute_docs
from backend.config.paths import checked_text, meant_name, meant_path
from backend.errors import one_line

KINDS = {bool: "bool", int: "int", float: "float", str: "str", Path: "path"}
# Texts that name a file or folder, though they may name a model on the hub too.
OF_FILES = ("model", "checkpoint", "file", "folder")


@dataclass(frozen=True)
class Option:
    """What a field's type does not say, given as `Annotated[type, Option(...)]`.

    Attributes:
        advanced: the form shows it only on request.
        positional: on the command line the value is given without a flag, in the order of the fields.
        aliases: other names of the field, as flags and as toml keys.
        spellings: pairs of (another spelling of a value, the value), such as ("lora", "networks.lora").
        alternatives: other options of the section that may stand in its place; one of them all is required, and the
            field itself is `X | None`.
        widget: a hint for the form, such as "folder", "file" or "text".
        suggestions: usual values of a text; the form offers them, any case of them is understood, others are allowed.
        names_file: a text that becomes the name of a file or folder, or a part of one.
        of_this_machine: it says where and as what this machine meets others, so no preset and no import carries it.
    """

    advanced: bool = False
    positional: bool = False
    aliases: tuple[str, ...] = ()
    spellings: tuple[tuple[str, Any], ...] = ()
    alternatives: tuple[str, ...] = ()
    widget: str = ""
    suggestions: tuple[str, ...] = ()
    names_file: bool = False
    of_this_machine: bool = False


@dataclass(frozen=True)
class Leaf:
    """One option as the command line, toml, the form and the docs see it.

    Attributes:
        name: its one name, unique within a command.
        section: the attribute of the command that holds it; `title` is that section's heading.
        kind: bool, int, float, str, choice, path, list or table; `item` is the kind of a list's items.
        length: number of items of a list that has a fixed number, else None.
        required: it has to be given, unless one of its `alternatives` is.
        optional: None is a value of it (and then always the default).
        ge, gt, le, lt, multiple_of: bounds of the number or of a list's items, None where there is none.
    """

    name: str
    kind: str
    section: str = ""
    title: str = ""
    item: str = ""
    length: int | None = None
    choices: tuple[str, ...] = ()
    default: Any = None
    required: bool = False
    optional: bool = False
    help: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: float | None = None
    advanced: bool = False
    positional: bool = False
    aliases: tuple[str, ...] = ()
    spellings: tuple[tuple[str, Any], ...] = ()
    alternatives: tuple[str, ...] = ()
    widget: str = ""
    suggestions: tuple[str, ...] = ()
    names_file: bool = False
    of_this_machine: bool = False

    @property
    def element(self) -> "Leaf":
        """The leaf of one item of a list; the leaf itself if it is no list."""
        return replace(self, kind=self.item, item="", length=None, optional=False) if self.kind == "list" else self


class Section(BaseModel):
    """A group of options. The first line of the subclass's docstring is its heading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # a section is built once, within the command that is used
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give each field the docstring below it as its description."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, text in attribute_docs(cls.__module__).get(cls.__qualname__, {}).items():
            if name in cls.__annotations__ and cls.model_fields[name].description is None:
                cls.model_fields[name].description = text

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        """Turn what toml and forms can write (lists, text for paths, choices in any case) into the field's types."""
        if not isinstance(data, Mapping):
            return data
        found = section_leaves(cls)
        plain, wrong = {}, []
        for name, value in data.items():
            try:
                plain[name] = plain_value(found[name], value) if name in found else value
            except ValueError as error:
                wrong.append((name, one_line(str(error))))
        if wrong:
            reject_all(wrong)
        return plain

    @model_validator(mode="after")
    def _one_of_the_alternatives(self) -> Self:
        for name, leaf in section_leaves(type(self)).items():
            if leaf.alternatives and all(getattr(self, each) is None for each in (name, *leaf.alternatives)):
                reject(name, f"is required: {gist(leaf.help)}, or give {' or '.join(leaf.alternatives)}")
        return self


class Command(Section):
    """The config of one command: its attributes are sections. Leaf names are unique within it."""

    command: ClassVar[str] = ""

    def starts_processes(self) -> bool:
        """Whether the command only starts and looks after processes, which run it."""
        return False

    def packages(self) -> tuple[str, ...]:
        """The packages of backend/lean.py's OPTIONAL that the command imports with these options."""
        return ()


def plain_value(leaf: Leaf, value: Any) -> Any:
    """The value in the type of the leaf where toml has no such type, texts as they are meant; others are judged later.

    Raises:
        ValueError: it is a text that no path, name or file can hold; see paths.py.
    """
    if leaf.kind == "list" and isinstance(value, list | tuple):
        return tuple(plain_value(leaf.element, item) for item in value)
    if leaf.kind == "table" and isinstance(value, str | list | tuple | Mapping):
        _check_texts(value)
    if not isinstance(value, str):
        return spelled(leaf, value)
    if leaf.kind == "path":
        # An empty text is no path, and is refused as such.
        return Path(path) if (path := meant_path(value)) else value
    if leaf.kind == "str" and leaf.widget in OF_FILES:
        return meant_path(value)
    if leaf.kind == "str" and leaf.names_file:
        return meant_name(value)
    return spelled(leaf, checked_text(value))


def _check_texts(value: Any) -> None:
    """Check the texts of a table or list, level by level."""
    if isinstance(value, str):
        checked_text(value)
    elif isinstance(value, Mapping):
        for pair in value.items():
            _check_texts(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(item)


def spelled(leaf: Leaf, value: Any) -> Any:
    """A choice or suggestion as it is declared, whatever its case or other spelling; any other value as it is."""
    if not isinstance(value, str):
        return value
    known = {choice.lower(): choice for choice in (*leaf.choices, *leaf.suggestions)}
    known |= {a.lower(): b for a, b in leaf.spellings}
    return known.get(value.strip().lower(), value)


def reject(field: str, message: str) -> NoReturn:
    """Refuse a value from within a validator, naming the field.

    Raises:
        PydanticCustomError: which merge.py turns into the problem (field, message).
    """
    reject_all([(field, message)])


def reject_all(problems: list[tuple[str, str]]) -> NoReturn:
    """Refuse several values from within one validator, as pairs of field and message."""
    raise PydanticCustomError("problems", "refused", {"problems": problems})


@cache
def section_leaves(section_class: type[Section]) -> dict[str, Leaf]:
    """The leaves of one section by name, in the order of declaration, its own before those of a section it extends.

    Nested sections are left out.
    """
    extended = {name for base in section_class.__mro__[1:] for name in getattr(base, "model_fields", ())}
    return {
        name: _leaf(name, info)
        for name, info in sorted(section_class.model_fields.items(), key=lambda item: item[0] in extended)
        if not any(isinstance(part, type) and issubclass(part, Section) for part in _parts(info.annotation))
    }


@cache
def leaves(command_class: type[Command]) -> dict[str, Leaf]:
    """Every option of a command by name, in the order of its sections.

    Raises:
        TypeError: a name or alias is declared twice, or a section has a leaf's name.
    """
    found: dict[str, Leaf] = {}
    taken = set(command_class.model_fields)
    for section, info in command_class.model_fields.items():
        title = heading(info.annotation)
        for name, leaf in section_leaves(info.annotation).items():
            for spelling in (name, *leaf.aliases):
                if spelling in taken:
                    raise TypeError(f"{command_class.__name__}: the name {spelling} is declared twice")
                taken.add(spelling)
            found[name] = replace(leaf, section=section, title=title)
    return found


def gist(text: str) -> str:
    """A help text up to its first stop."""
    found = re.split(r"[:;.](?:\s|$)", text)[0]
    return found[:1].lower() + found[1:]


def heading(section_class: type[BaseModel]) -> str:
    """The first line of a class's docstring, without the full stop."""
    return (section_class.__doc__ or section_class.__name__).strip().splitlines()[0].rstrip(".")


def _parts(annotation: Any) -> list[Any]:
    """A type and all the types it is made of."""
    return [annotation] + [part for argument in get_args(annotation) for part in _parts(argument)]


def _leaf(name: str, info: FieldInfo) -> Leaf:
    annotation, optional = info.annotation, False
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) != 1 or info.is_required() or info.get_default(call_default_factory=True) is not None:
            raise TypeError(f"{name}: a union must be `X | None` with the default None, since toml has no null")
        annotation, optional = members[0], True
    kind, choices = _kind(name, annotation)
    item, length = "", None
    if kind == "list":
        arguments = get_args(annotation)
        length = None if arguments[-1] is Ellipsis else len(arguments)
        item, choices = _kind(name, arguments[0])
    bounds = {
        bound: getattr(constraint, bound)
        for constraint in info.metadata
        for bound in ("ge", "gt", "le", "lt", "multiple_of")
        if getattr(constraint, bound, None) is not None
    }
    option = next((mark for mark in info.metadata if isinstance(mark, Option)), Option())
    return Leaf(
        name=name,
        kind=kind,
        item=item,
        length=length,
        choices=choices,
        default=None if info.is_required() else info.get_default(call_default_factory=True),
        required=info.is_required() or bool(option.alternatives),
        optional=optional,
        help=" ".join((info.description or "").split()),
        **bounds,
        **{field: getattr(option, field) for field in Option.__dataclass_fields__},
    )


def _kind(name: str, annotation: Any) -> tuple[str, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin is Literal:
        return "choice", get_args(annotation)
    if origin is tuple:
        return "list", ()
    if origin is dict:
        return "table", ()
    if annotation not in KINDS:
        raise TypeError(f"{name}: {annotation} is no type of an option")
    return KINDS[annotation], ()
