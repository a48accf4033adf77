"""Placeholders of a manifest, and what Argo puts in their place."""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

_TAG = re.compile(r"\{\{(=?)(.+?)\}\}")
_OURS = re.compile(r"(inputs|outputs|tasks|steps|workflow)\.|item\b|retries\b|=")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "asInt": int,
    "sprig.int": int,
    "sprig.sub": lambda a, b: a - b,
    "toBase64": _base64,
}
"""Those of Argo's expression language that Metaflow uses."""


def fill(value: Any, known: Mapping[str, str]) -> Any:
    """A copy of what was read from a manifest, with the placeholders filled in whose names are known.

    The others stay, as ``{{retries}}`` does until its template is run.
    """
    if isinstance(value, str):
        return _TAG.sub(lambda tag: _replacement(tag, known), value)
    if isinstance(value, dict):
        return {key: fill(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, known) for one in value]
    return value


def unfilled(value: Any) -> list[str]:
    """Placeholders that are left. What a shell or Python writes in double braces is not one."""
    if isinstance(value, str):
        return [tag[0] for tag in _TAG.finditer(value) if _OURS.match(tag[1] + tag[2].strip())]
    if isinstance(value, dict | list):
        return [tag for one in (value.values() if isinstance(value, dict) else value) for tag in unfilled(one)]
    return []


def _replacement(tag: re.Match[str], known: Mapping[str, str]) -> str:
    try:
        if tag[1]:
            return str(_evaluate(ast.parse(tag[2].strip(), mode="eval").body, known))
        return known[tag[2].strip()]
    except KeyError:
        return tag[0]


def _evaluate(expression: ast.expr, known: Mapping[str, str]) -> Any:
    """Argo's expressions are not Python's, but those that Metaflow writes read the same."""
    if isinstance(expression, ast.Call):
        return _FUNCTIONS[_name(expression.func)](*(_evaluate(one, known) for one in expression.args))
    if isinstance(expression, ast.Constant):
        return expression.value
    return known[_name(expression)]


def _name(expression: ast.expr) -> str:
    """ "a.b.c" of ``a.b.c`` and of ``a.b['c']``."""
    if isinstance(expression, ast.Attribute):
        return f"{_name(expression.value)}.{expression.attr}"
    if isinstance(expression, ast.Subscript) and isinstance(expression.slice, ast.Constant):
        return f"{_name(expression.value)}.{expression.slice.value}"
    return ast.unparse(expression)
