"""docs/performance.md: each benchmark replaces its own section there and leaves the others alone."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from backend.replacing import replacing
from backend.workspace import PROJECT

PAGE = PROJECT / "docs" / "performance.md"
HEAD = """# Performance

Figures of the last run of each benchmark, written by the benchmarks themselves (`--write`). Both sides of a pair run in
one process tree and take turns, so a ratio below 1 means that ours takes less, and what else the machine does disturbs
both alike. A ratio is the median over the pairs, with the quartiles in brackets. Memory is the most that the process
has in use: its own pages (RssAnon) on a CPU, what PyTorch's allocator has given out on a GPU.
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quoted(script: str) -> str:
    """The command line of this run, without where its figures go."""
    words = sys.argv[1:]
    if "--write" in words:
        place = words.index("--write")
        named = words[place + 1 : place + 2]
        del words[place : place + (2 if named and not named[0].startswith("--") else 1)]
    return " ".join([f"python -m benchmarks.{script}", *words])


def markers(name: str) -> tuple[str, str]:
    """The lines before and after the section `name`."""
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def with_section(page: str, name: str, text: str) -> str:
    """The page with the section `name` replaced, or added in the order of names."""
    begin, end = markers(name)
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: section, page)
    for found in re.finditer(r"<!-- begin: (.+?) -->", page):
        if found[1] > name:
            return f"{page[: found.start()]}{section}\n\n{page[found.start() :]}"
    return f"{page.rstrip()}\n\n{section}\n"


def has_section(name: str, path: Path = PAGE) -> bool:
    """Whether the page has a section `name`."""
    return path.is_file() and markers(name)[0] in path.read_text(encoding="utf-8")


def write_section(name: str, text: str, path: Path = PAGE) -> None:
    """Replace the section `name` of the page, which is made where there is none."""
    page = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    with replacing(path) as temporary:
        temporary.write_text(with_section(page, name, text), encoding="utf-8")
