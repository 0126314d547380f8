"""Foreign keys on their way into our config: every one is taken, told in a note, or named among those that say nothing.

An adapter (gui.py, scripts.py, lora_file.py) puts a file's keys into a `Reading` and treats those whose names or values
differ; `Reading.by_name` takes the rest; judging.py then judges the values by the config core. A key leaves
`Reading.left` only into one of these places, so none can be dropped in silence.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.config.declare import leaves
from backend.config.messages import did_you_mean, shown
from backend.config.text import FALSE, TRUE
from backend.config.train import TrainNetwork

LOST, CHANGED, OPEN = "lost", "changed", "open"
NO_COUNTERPART = "has no counterpart here"
SECRETS = ("wandb_api_key", "huggingface_token")
UNSET: tuple[Any, ...] = (None, "", "None", [], (), {})
OF_THIS_MACHINE = "says where machines meet, which is each machine's own; set it on the command line"
KEY_LENGTH = 80


@dataclass(frozen=True)
class Note:
    """What became of one foreign key.

    Attributes:
        key: its name there.
        value: its value as a message shows it.
        text: the reason, or what was made of it.
        kind: LOST: not carried over. CHANGED: carried over in another form. OPEN: the user has to complete it.
    """

    key: str
    value: str
    text: str
    kind: str = LOST

    def line(self) -> str:
        """The note as one line of text."""
        return f"{self.key} = {self.value}: {self.text}" if self.value else f"{self.key}: {self.text}"


@dataclass(frozen=True)
class Imported:
    """A foreign config in our words.

    Attributes:
        values: options of `TrainNetwork` by name, each valid.
        notes: what was not carried over, or in another form, or has to be completed.
        source_kind: what was read, in words.
        taken: foreign keys that are in `values`.
        idle: foreign keys that say nothing: unset, at their program's default, or without effect beside others.
        facts: keys that describe a finished run and are no options.
        prompts: the text of sample prompts where the file has them in place of a file's name.
        dataset: a dataset toml of what the file tells of the pictures, whose folders are still to be named.
    """

    values: dict[str, Any]
    notes: tuple[Note, ...]
    source_kind: str
    taken: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    prompts: str = ""
    dataset: str = ""

    def of(self, kind: str) -> list[Note]:
        """The notes of one kind."""
        return [note for note in self.notes if note.kind == kind]

    def counts(self) -> list[str]:
        """What is only counted, in words, with the names."""
        known = (
            ("unset, at their default or without effect there", self.idle),
            ("facts of a finished run", self.facts),
        )
        return [f"{len(keys)} keys are {what}: {', '.join(keys)}" for what, keys in known if keys]


@dataclass
class Reading:
    """A file's keys while they are sorted; see the module's docstring."""

    left: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    # By option, or option.argument: the foreign key that it comes from.
    origin: dict[str, str] = field(default_factory=dict)
    # By the same: the value that stood there.
    given: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    prompts: str = ""
    dataset: str = ""

    def text(self, key: str) -> str:
        """A key's value as text, "" where it is unset or no plain value."""
        value = self.left.get(key)
        return "" if value in UNSET or not isinstance(value, str | int | float) else str(value).strip()

    def number(self, key: str) -> float | None:
        """A key's value as a number, None where it is unset or none."""
        return as_number(self.left.get(key))

    def on(self, key: str) -> bool:
        """Whether a key is switched on."""
        return self.text(key).lower() in TRUE

    def take(self, key: str, name: str = "", value: Any = None) -> None:
        """Carry a key over into the option `name`, its own where none is given, with its value or another."""
        mine = self.left.pop(key) if key in self.left else None
        name = name or key
        self.values[name] = mine if value is None else value
        self._origin(key, name, mine)

    def argument(self, key: str, table: str, name: str, value: Any = None) -> None:
        """Carry a key over into an argument of an option that is a table."""
        mine = self.left.pop(key) if key in self.left else None
        self.values.setdefault(table, {})[name] = mine if value is None else value
        self._origin(key, f"{table}.{name}", mine)

    def lose(self, key: str, text: str, value: Any = None) -> None:
        """Tell that a key is not carried over, and why."""
        mine = self.left.pop(key) if key in self.left else None
        self._note(key, mine if value is None else value, text, LOST)

    def change(self, key: str, text: str, value: Any = None) -> None:
        """Tell that a key is carried over in another form; the value stays where it is."""
        self._note(key, self.left.get(key) if value is None else value, text, CHANGED)

    def open(self, key: str, text: str, value: Any = None) -> None:
        """Tell that the user has to complete something."""
        mine = self.left.pop(key) if key in self.left else None
        self._note(key, mine if value is None else value, text, OPEN)

    def drop(self, *keys: str) -> None:
        """Set keys aside that have no effect where they come from; those that are not there are passed over."""
        self.idle += [short(key) for key in keys if key in self.left]
        for key in keys:
            self.left.pop(key, None)

    def retract(self, name: str, text: str) -> None:
        """Take an option back out of the values, and tell of the keys that it came from."""
        value = self.values.pop(name, None)
        places = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for place, item in places.items():
            key = self.origin.get(place) or (
                place if name not in self.origin else f"{self.origin[name]}{place[len(name) :]}"
            )
            self.taken = [each for each in self.taken if each != key]
            self._note(key, self.given.get(place, item), text, LOST)

    def override(self, name: str) -> None:
        """Take an option back out of the values, since another key of more weight is about to say it."""
        value = self.values.pop(name, None)
        places = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
        keys = [self.origin.pop(place) for place in places if place in self.origin]
        self.idle += keys
        self.taken = [key for key in self.taken if key not in keys]

    def by_name(self, defaults: Mapping[str, Any], reasons: Mapping[str, str], program: str) -> None:
        """Sort what is left: by the name of an option here, else by what is known of the key.

        Args:
            defaults: the program's options with their defaults.
            reasons: why an option has no counterpart here, where more can be said than that.
            program: its name, for messages.
        """
        known = leaves(TrainNetwork)
        names = {alias: name for name, leaf in known.items() for alias in (name, *leaf.aliases)}
        for key in list(self.left):
            value = self.left[key]
            if value in UNSET:
                self.drop(key)
            elif key in names and known[names[key]].of_this_machine:
                if same(value, known[names[key]].default):
                    self.drop(key)
                else:
                    self.lose(key, OF_THIS_MACHINE)
            elif key in names and names[key] not in self.values:
                self.take(key, names[key])
            elif key in names:
                self.lose(key, f"is given twice; {self.origin.get(names[key], names[key])} is taken")
            elif key in SECRETS:
                self.lose(key, "is a secret, and does not belong in a config; give it in the environment", "...")
            elif key in defaults and same(value, defaults[key]):
                self.drop(key)
            elif key in reasons or key in defaults:
                self.lose(key, reasons.get(key, NO_COUNTERPART))
            else:
                self.lose(key, f"is no option of {program} and none of ours{did_you_mean(key, names)}")

    def _origin(self, key: str, place: str, value: Any) -> None:
        self.origin[place], self.given[place] = short(key), value
        if short(key) not in self.taken:
            self.taken.append(short(key))

    def _note(self, key: str, value: Any, text: str, kind: str) -> None:
        told = "" if value in UNSET else value if value == "..." else shown(value)
        self.notes.append(Note(short(key), told, text, kind))


def as_number(value: Any) -> float | None:
    """A number or its text as a number; None for everything else, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def same(value: Any, default: Any) -> bool:
    """Whether a value is a default: 0, "0" and 0.0 are the same, and so are off and unset."""
    if default in UNSET or default is False:
        return value in UNSET or str(value).lower() in FALSE or as_number(value) == 0
    number = as_number(default)
    return as_number(value) == number if number is not None else value == default


def short(key: str) -> str:
    """A key's name, cut where it is long."""
    return key if len(key) <= KEY_LENGTH else f"{key[: KEY_LENGTH - 3]}..."


def items_of(tables: Mapping[str, Any], options: Container[str]) -> list[tuple[str, Any]]:
    """The keys and values of flat or sectioned tables; a table under the name of an option is no section."""
    found: list[tuple[str, Any]] = []
    for key, value in tables.items():
        is_section = isinstance(value, Mapping) and value and key not in options
        found += value.items() if is_section else [(key, value)]
    return found
