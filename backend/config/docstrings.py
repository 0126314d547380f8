"""The docstrings below the attributes of classes, which Python does not keep.

pydantic finds them too (`use_attribute_docstrings`), class by class through the frames and modules of the process; that
is a quarter of a second for the classes of one command, where a look at each source file takes a tenth of that.
"""

import ast
import inspect
import sys
from functools import cache


@cache
def attribute_docs(module: str) -> dict[str, dict[str, str]]:
    """Docstrings by the qualified name of a class and the name of its attribute, cleaned as Python cleans docstrings.

    Args:
        module: name of an imported module. One without a source file has none.
    """
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        with open(path or "", encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, dict[str, str]] = {}
    _look_in(tree, "", found)
    return found


def _look_in(node: ast.AST, prefix: str, found: dict[str, dict[str, str]]) -> None:
    """Fill `found` from all classes in a node, those in functions and other classes too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            found[prefix + child.name] = _docs_of(child)
            _look_in(child, f"{prefix}{child.name}.", found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _look_in(child, f"{prefix}{child.name}.<locals>.", found)
        elif isinstance(child, ast.stmt):
            _look_in(child, prefix, found)


def _docs_of(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for first, second in zip(node.body, node.body[1:]):
        if not (isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name)):
            continue
        if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
            text = second.value.value
            if isinstance(text, str):
                docs[first.target.id] = inspect.cleandoc(text)
    return docs
