"""The help of an option is the docstring below it, as pydantic would find it."""

from pydantic import BaseModel, ConfigDict

from backend.config.declare import Section, section_leaves
from backend.config.docstrings import attribute_docs


class Outer(Section):
    """Outer."""

    plain: int = 1
    """Help over
    two lines."""
    silent: int = 2

    class Inner(Section):
        """Inner."""

        plain: int = 3
        """Of the inner one."""


class Derived(Outer):
    """Derived."""

    silent: int = 4
    """Now it speaks."""
    more: int = 5
    """More."""


def helps(section: type[Section]) -> dict[str, str]:
    return {name: leaf.help for name, leaf in section_leaves(section).items()}


def test_each_class_has_its_own_and_those_it_extends():
    assert helps(Outer) == {"plain": "Help over two lines.", "silent": ""}
    assert helps(Outer.Inner) == {"plain": "Of the inner one."}
    assert helps(Derived) == {"silent": "Now it speaks.", "more": "More.", "plain": "Help over two lines."}


def test_classes_in_functions():
    class Local(Section):
        """Local."""

        plain: int = 1
        """Of the local one."""

    assert helps(Local) == {"plain": "Of the local one."}


def test_a_module_without_a_source_has_none():
    assert attribute_docs("sys") == attribute_docs("no.such.module") == {}
    made = type("Made", (Section,), {"__module__": "sys", "__annotations__": {"plain": int}, "plain": 1})
    assert helps(made) == {"plain": ""}


class Theirs(BaseModel):
    """A plain model of pydantic."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    first: int = 1
    """One line."""
    second: int = 2
    third: int = 3
    """Several

        of them, indented.
    """


def test_pydantic_finds_the_same():
    theirs = {name: info.description for name, info in Theirs.model_fields.items() if info.description}
    assert attribute_docs(__name__)["Theirs"] == theirs and len(theirs) == 2
