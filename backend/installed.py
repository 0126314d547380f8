"""Classes that a config names as `module.Class`: only from packages that are installed.

The working directory, the project, the workspace and PYTHONPATH stand before the installed packages when Python looks
for a module, and anybody may have put a file there. So a name is looked up among the installed packages alone, without
importing anything, and is refused where Python would find something else.
"""

import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# What importing somebody else's module may raise.
REFUSED_IMPORTS = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, SyntaxError)


class NotInstalledError(ImportError):
    """A module is there, but not in an installed package."""


def import_installed(name: str) -> ModuleType:
    """Import a module of an installed package.

    Raises:
        NotInstalledError: Python would find it elsewhere.
        ImportError: it is nowhere, or does not load.
    """
    refuse_elsewhere(name)
    return importlib.import_module(name)


def refuse_elsewhere(name: str) -> None:
    """Make sure that a module is of an installed package, or nowhere; imports nothing.

    Raises:
        NotInstalledError: Python would find it elsewhere.
    """
    top = name.partition(".")[0]
    wrong = "__main__" in name.split(".")
    installed = None if wrong else PathFinder.find_spec(top, list(_roots()))
    if sys.modules.get(top, top) is None:
        return  # hidden from everybody; the import says so
    meant = getattr(sys.modules.get(top), "__spec__", None) or PathFinder.find_spec(top)
    if meant is None and installed is None and not wrong and top not in sys.builtin_module_names:
        return
    if installed is None or not _is_same(installed, meant):
        place = _place(meant)
        where = f" (it lies in {place})" if place else ""
        raise NotInstalledError(
            f"{name} is not in an installed package{where}; a config names no other code to run: install it with pip"
        )


def _is_same(installed: ModuleSpec, meant: ModuleSpec | None) -> bool:
    """Whether what Python finds is what is installed; parts of a namespace must all be."""
    if meant is None:
        return True
    if installed.origin is not None:
        return meant.origin is not None and os.path.realpath(meant.origin) == os.path.realpath(installed.origin)
    return meant.origin is None and all(_is_below(place) for place in meant.submodule_search_locations or ())


def _is_below(place: str) -> bool:
    real = os.path.realpath(place)
    return any(real.startswith(os.path.realpath(root) + os.sep) for root in _roots())


def _place(spec: ModuleSpec | None) -> str:
    if spec is None or spec.origin in ("built-in", "frozen"):
        return ""
    places: Sequence[str] = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return places[0]


@cache
def _roots() -> tuple[str, ...]:
    """The folders that `pip install` fills for this Python."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    found += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return tuple(dict.fromkeys(found))
