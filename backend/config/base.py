"""One option, one place: the public face of the config core.

Options are declared as fields of a `Section`, sections make up a `Command` (declare.py says how). `from_argv` turns a
command line, with its toml files and presets, into a frozen config; `leaves` gives the options one by one, for forms
and docs; `resolve` and `problems` judge values that come from elsewhere; `to_toml` writes them.
"""

from backend.config.argv import from_argv, help_text
from backend.config.declare import Command, Leaf, Option, Section, leaves, reject, section_leaves
from backend.config.merge import flatten, problems, resolve, values
from backend.config.messages import bounds, expectation
from backend.config.text import parse_text
from backend.config.toml import load as read_table
from backend.config.toml import read_toml, resolved_toml, to_toml

__all__ = [
    "Command",
    "Leaf",
    "Option",
    "Section",
    "bounds",
    "expectation",
    "flatten",
    "from_argv",
    "help_text",
    "leaves",
    "parse_text",
    "problems",
    "read_table",
    "read_toml",
    "reject",
    "resolve",
    "resolved_toml",
    "section_leaves",
    "to_toml",
    "values",
]
