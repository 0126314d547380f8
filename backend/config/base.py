"""One option, one place: the public face of the config core.

    class Optim(Section): ...            declare options (declare.py says how)
    class TrainNetwork(Command): ...     a command is made of sections
    from_argv(TrainNetwork, argv)        a command line, with toml files and presets, as a frozen config
    leaves(TrainNetwork)                 the options one by one, for forms and docs
"""

from backend.config.argv import from_argv, help_text
from backend.config.declare import Command, Leaf, Option, Section, leaves, reject, section_leaves
from backend.config.merge import flatten, problems, resolve, values
from backend.config.messages import bounds, expectation
from backend.config.text import parse_text
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
    "read_toml",
    "reject",
    "resolve",
    "resolved_toml",
    "section_leaves",
    "to_toml",
    "values",
]
