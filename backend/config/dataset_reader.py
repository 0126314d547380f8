"""Reads the tables of a dataset toml: looks every value up through its levels and gathers what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.config.declare import Section, section_leaves
from backend.config.merge import Problems, validate_section
from backend.config.messages import did_you_mean
from backend.config.reference_options import REFERENCE_OPTIONS
from backend.errors import ConfigError

COMMAND_LINE = "the command line"
# Keys of the reference that have no effect here, as the flags of these names have none.
IDLE = ("cache_info",)

Table = Mapping[str, Any]


@dataclass
class Reader:
    """Reads one file.

    Attributes:
        source: the file's name, for messages.
        dataset, subset: the sections that declare the keys of `[[datasets]]` and of `[[datasets.subsets]]`; those of a
            subset may stand further up too.
        defaults: values of keys that the file leaves out.
        subset_only: keys of a subset that may not.
        not_with_metadata: keys of a subset that have no meaning beside `metadata_file`.
        problems: what was found to be wrong.
        notes: what is passed over, one line each.
    """

    source: str
    dataset: type[Section]
    subset: type[Section]
    defaults: Table
    subset_only: Sequence[str] = ()
    not_with_metadata: Sequence[str] = ()
    problems: Problems = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, tables: Table) -> list[Any]:
        """The datasets, each with its `subsets`.

        Raises:
            ConfigError: with everything that is wrong, and the table it stands in.
        """
        for key in tables:
            if key not in ("general", "datasets"):
                home = self._home(key)
                hint = f"; it belongs in {home}" if home else did_you_mean(key, ("general", "datasets"))
                self._add(key, f"is not a key of a dataset toml's top level{hint}", "")
        general = tables.get("general", {})
        if not isinstance(general, Mapping):
            self._add("general", "must be a table, [general]", "")
            general = {}
        general = self._named(general, (*self._dataset_keys, *self._shared_keys), "[general]")
        datasets = []
        for number, table in enumerate(self._tables(tables, "datasets", "[[datasets]]", ""), start=1):
            datasets.append(self._dataset(general, table, number))
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        return datasets

    @property
    def _dataset_keys(self) -> tuple[str, ...]:
        return tuple(section_leaves(self.dataset))

    @property
    def _shared_keys(self) -> tuple[str, ...]:
        return tuple(name for name in section_leaves(self.subset) if name not in self.subset_only)

    def _dataset(self, general: Table, given: Table, number: int) -> Any:
        place = f"dataset {number}"
        table = self._named(given, (*self._dataset_keys, *self._shared_keys, "subsets"), place)
        shared = [(self.defaults, COMMAND_LINE), (general, "[general]"), (table, place)]
        subsets, kinds = [], set()
        for index, own in enumerate(self._tables(table, "subsets", "[[datasets.subsets]]", place), start=1):
            inner = f"subset {index} of {place}"
            subset = self._named(own, tuple(section_leaves(self.subset)), inner)
            kinds.add("metadata_file" in subset)
            for key in self.not_with_metadata:
                if "metadata_file" in subset and key in subset:
                    self._add(key, "has no meaning with metadata_file; leave one out", inner)
            subsets.append(self._section(self.subset, [*shared, (subset, inner)], inner))
        if len(kinds) > 1:
            message = "stands in some subsets and not in others; give these a [[datasets]] of their own"
            self._add("metadata_file", message, place)
        options = self._section(self.dataset, shared, place)
        if options is None or None in subsets:
            return None
        return options.model_copy(update={"subsets": tuple(subsets)})

    def _section(self, section: type[Section], levels: list[tuple[Table, str]], place: str) -> Any:
        known = section_leaves(section)
        given, origin = {}, {}
        for table, level in levels:
            for key, value in table.items():
                if key in known:
                    given[key], origin[key] = value, level
        options, problems = validate_section(section, given)
        for name, message in problems:
            self._add(name, message, origin.get(name, place))
        return options

    def _tables(self, table: Table, key: str, header: str, place: str) -> list[Table]:
        found = table.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(item, Mapping) for item in found):
            self._add(key, f"must be given as one or more tables {header}", place)
            return []
        return found

    def _named(self, table: Table, allowed: tuple[str, ...], place: str) -> dict[str, Any]:
        """The values of a table under the one name of each key; JSON's null is no value."""
        names = {name: name for name in allowed} | {
            alias: name
            for name, leaf in section_leaves(self.subset).items()
            if name in allowed
            for alias in leaf.aliases
        }
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key in IDLE:
                if value:
                    self.notes.append(f"{key} has no effect here: {REFERENCE_OPTIONS['train_network'][key].reason}")
            elif key not in names:
                home = self._home(key)
                hint = f"; it belongs in {home}" if home else did_you_mean(key, allowed)
                self._add(key, f"is not a key of this table{hint}", place)
            elif names[key] in found:
                self._add(names[key], "is given twice", place)
            elif value is not None:
                found[names[key]] = value
        return found

    def _add(self, name: str, message: str, place: str) -> None:
        where = place if place == COMMAND_LINE else f"{place} in {self.source}" if place else self.source
        self.problems.append((name, f"{message} ({where})"))

    def _home(self, key: str) -> str:
        """The table where a key belongs that is right by name."""
        if key in self.subset_only:
            return "[[datasets.subsets]]"
        if key in self._dataset_keys:
            return "[[datasets]] or [general]"
        return "[general], [[datasets]] or [[datasets.subsets]]" if key in self._shared_keys else ""
