"""Docstrings of settings: the text below a field, read from its class's source when help asks for it."""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise


def docstring_of(kind: type, name: str) -> str:
    """Return the docstring below a field of a class, or of the base that defines it; empty where there is none.

    Pydantic reads them all as classes are made (``use_attribute_docstrings``): an agent's start took 0.14 s of CPU
    longer by that, a command's 0.35 s, whether or not it shows any help.
    """
    for owner in kind.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            return _docstrings(owner.__module__).get(owner.__qualname__, {}).get(name, "")
    return ""


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of all fields of a module's classes, by the classes' qualified names."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):  # typed at a prompt, or shipped without its source
        return {}
    return {name: _fields(node) for name, node in _classes(tree, "")}


def _classes(node: ast.AST, within: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{within}{child.name}", child
            yield from _classes(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{within}{child.name}.<locals>.")
        else:
            yield from _classes(child, within)


def _fields(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, text in pairwise(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = inspect.cleandoc(value.value)
    return found
