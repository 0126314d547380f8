"""A short start: a process that runs one command imports what that command needs, and looks for no garbage meanwhile.

Libraries import whatever optional package they find: diffusers alone pulls in bitsandbytes, with it PyTorch's compiler,
xformers and PEFT, which is half of the time until the first step. Here they do not find them.
"""

import gc
import importlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# What libraries import where it is installed, and what our commands need only where their options say so.
OPTIONAL = ("bitsandbytes", "peft", "xformers")


def loadable(packages: Collection[str]) -> set[str]:
    """Those of the packages that can be imported here; they are. One that breaks is forgotten, as if it were not there.

    What was built for another torch can fail in any way, while a library that only looks for it is imported.
    """
    found = set()
    for name in packages:
        before = {*sys.modules}
        try:
            importlib.import_module(name)
            if name == "xformers":
                importlib.import_module("xformers.ops")
        except (ImportError, OSError, RuntimeError, AttributeError, TypeError):
            for module in {*sys.modules} - before:
                if module == name or module.startswith(f"{name}."):
                    del sys.modules[module]
        else:
            found.add(name)
    return found


@contextmanager
def out_of_sight(packages: Collection[str]) -> Iterator[None]:
    """Within it these packages seem not to be installed, but for those that are imported already.

    None in `sys.modules` is Python's own way to say so: `import` raises ModuleNotFoundError, `find_spec` finds nothing.
    Libraries ask once and remember the answer. Afterwards the packages can be imported as ever.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            # Whoever put a real module there in the meantime keeps it.
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within it, and none later of what is there at its end.

    Importing makes hundreds of thousands of objects that stay, and each full collection looks at all of them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
