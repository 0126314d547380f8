"""The end of an import: values in the types of their options, without those that the config core refuses."""

from collections.abc import Mapping
from typing import Any

from backend.config.declare import OF_FILES, Leaf, leaves
from backend.config.dialects.reading import LOST, OPEN, UNSET, Imported, Note, Reading, as_number
from backend.config.merge import Problems, validate
from backend.config.messages import shown, wrong_type
from backend.config.text import parse_text, read_literals, read_pairs
from backend.config.train import TrainNetwork

# Options that mean something only to the choice they were made for.
OF_A_CHOICE = {"optimizer_type": ("optimizer_args",), "network_module": ("network_args",)}
# What stands for required options while the others are judged.
STAND_IN = "unknown"


def finish(reading: Reading, source_kind: str) -> Imported:
    """What was read, with every value judged; one that is refused becomes a note."""
    assert not reading.left, f"keys were forgotten: {list(reading.left)}"
    values = _Judge(reading).run()
    return Imported(
        values,
        tuple(reading.notes),
        source_kind,
        tuple(reading.taken),
        tuple(reading.idle),
        tuple(reading.facts),
        reading.prompts,
        reading.dataset,
    )


class _Judge:
    """Brings the values of a reading into the types of their options, and takes out what the config core refuses."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.known = leaves(TrainNetwork)
        self.kept: dict[str, Any] = {}
        self.stand_ins = {name for name, leaf in self.known.items() if leaf.required}
        if reading.prompts:
            self.stand_ins.add("sample_prompts")
        self.tried = set(self.stand_ins)
        # Those that give up others come last, when the others are there.
        self.given = sorted(reading.values.items(), key=lambda item: item[0] in OF_A_CHOICE)

    def run(self) -> dict[str, Any]:
        for name, value in self.given:
            try:
                converted = convert(self.known[name], value)
            except ValueError as error:
                self._refuse(name, str(error), value)
                continue
            if converted in UNSET and self.known[name].kind != "list":
                self.reading.idle.append(self.reading.origin.get(name, name))
            else:
                self.kept[name] = converted
        while True:
            config, problems = validate(TrainNetwork, self._complete())
            if config is not None:
                found = {name: getattr(getattr(config, self.known[name].section), name) for name in self.kept}
                return {name: value for name, value in found.items() if value is not None}
            taken_out = [self._take_out(place, text) for place, text in problems]
            if not any(taken_out) and not self._ask_for(problems):
                return {
                    name: read_literals(value) if isinstance(value, dict) else value
                    for name, value in self.kept.items()
                }

    def _complete(self) -> dict[str, Any]:
        lines = {
            name: [f"{key}={_written(item)}" for key, item in value.items()] if isinstance(value, dict) else value
            for name, value in self.kept.items()
        }
        return dict.fromkeys(self.stand_ins, STAND_IN) | lines

    def _ask_for(self, problems: Problems) -> bool:
        """Tell what is missing beside the values, and go on as if it were there; False where that was tried before."""
        missing = {place: text for place, text in problems if place not in self.tried}
        self.reading.notes += [Note(place, "", text, OPEN) for place, text in missing.items()]
        found = {place for place in missing if place in self.known}
        self.stand_ins |= found
        self.tried |= set(missing)
        return bool(found)

    def _take_out(self, place: str, text: str) -> bool:
        name, _, argument = place.partition(".")
        if name not in self.kept:
            # Where something else was given in its place, a stand-in is one too many.
            given = name in self.stand_ins
            self.stand_ins.discard(name)
            if name == "sample_prompts" and self.reading.prompts:
                self._refuse(name, text, self.reading.prompts)
                self.reading.prompts = ""
            return given
        if argument and argument in self.kept[name]:
            self._refuse(place, text, self.kept[name].pop(argument))
            if not self.kept[name]:
                del self.kept[name]
        else:
            self._refuse(name, text, self.kept.pop(name))
        return True

    def _refuse(self, place: str, text: str, value: Any) -> None:
        key = self.reading.origin.get(place, place)
        value = self.reading.given.get(place, value)
        self.reading.taken = [each for each in self.reading.taken if each != key]
        leaf = self.known.get(place)
        # A path of another machine is to be named anew.
        kind = OPEN if leaf is not None and (leaf.kind == "path" or leaf.widget in OF_FILES) else LOST
        self.reading.notes.append(Note(key, "" if value in UNSET else shown(value), text, kind))
        for other in OF_A_CHOICE.get(place, ()):
            if other in self.kept:
                self._refuse(other, f"belongs to that {place}, which is not taken", self.kept.pop(other))


def convert(leaf: Leaf, value: Any) -> Any:
    """A foreign value in the type of an option; text is read as on a command line. Bounds are left to validation.

    Raises:
        ValueError: it cannot be read.
    """
    if leaf.kind == "table":
        return read_pairs(value.replace('"', "") if isinstance(value, str) else [] if value in UNSET else value)
    if leaf.kind == "list" and not isinstance(value, str):
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(leaf.element, item) for item in items)
    if isinstance(value, str):
        if leaf.kind in ("str", "path"):
            return value
        value = value.strip().strip("[]") if leaf.kind == "list" else value.strip()
        if leaf.kind == "int" and (number := as_number(value)) is not None and number.is_integer() and "." in value:
            return int(number)
        return parse_text(leaf, value)
    if isinstance(value, list | tuple) and leaf.kind == "str":
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping | list | tuple):
        raise ValueError(wrong_type(leaf, value))
    return _plain(leaf, value)


def _plain(leaf: Leaf, value: Any) -> Any:
    """A number or a truth in the type of an option."""
    if leaf.kind == "bool" and value in (0, 1):
        return bool(value)
    if leaf.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if leaf.kind == "float" and type(value) is int:
        return float(value)
    if leaf.kind in ("str", "path", "choice") and not isinstance(value, bool):
        return parse_text(leaf, str(value))
    return value


def _written(value: Any) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
