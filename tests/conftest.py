"""The order of the tests, and which of them are for a long run only."""

from pathlib import Path

import pytest
from hypothesis import settings

# By file or folder, what comes first, so that no process is left with the longest at the end; all others follow.
FIRST = ("test_end_to_end.py", "ui", "serving", "train", "tools", "families", "generate", "networks", "demo", "jobs")
LONG = "takes long and is shown in parts by others: ./test.sh --long runs it"

# A busy machine is no fault of what is tested. `--hypothesis-profile long` tries many more examples.
settings.register_profile("default", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the tests that are marked so."""
    parser.addoption("--long", action="store_true", help="also run the tests that are marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by place; the tests themselves pass in any order."""
    items.sort(key=lambda item: place(item.path))
    for item in items:
        if "long" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason=LONG))


def place(path: Path) -> int:
    """Where a test file stands in `FIRST`, by its name or its folder's."""
    return next((number for number, name in enumerate(FIRST) if name in (path.name, path.parent.name)), len(FIRST))
