"""``metaflow-gang stubs``: adds our types to Metaflow's stub package, which hides those beside Metaflow's modules."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

from .command import refuse

OURS = "_gang.pyi"
"""The file with our types, beside Metaflow's modules (stubs/metaflow/), and then in the stub package."""

BESIDE = "huggingface_card_callback.pyi"

MARK = "# metaflow-gang's part, by `metaflow-gang stubs`; see docs/editors.md.\n"


def stubs() -> int:
    """Add our types to metaflow-stubs, or to what ob-metaflow-stubs has under that name; returns the exit code."""
    source, target = _on_path("metaflow", OURS), _on_path("metaflow-stubs", "__init__.pyi")
    if source is None:
        return refuse(f"metaflow/{OURS} is missing: install the package anew, as a wheel and not as an editable one.")
    if target is None:
        print("Nothing to do: there is no stub package of Metaflow (metaflow-stubs, ob-metaflow-stubs).")
        return 0
    try:
        for name in (OURS, BESIDE):
            shutil.copyfile(source / name, target / name)
        index = target / "__init__.pyi"
        index.write_text(merged(index.read_text("utf-8"), (source / OURS).read_text("utf-8")), "utf-8")
    except OSError as error:
        return refuse(f"{target} cannot be changed: {error}.")
    print(f"Added to {target}. Do it again after its next update.")
    return 0


def merged(index: str, ours: str) -> str:
    """The stub package's ``__init__.pyi``, with our names in place of those of the same name.

    Parameters
    ----------
    index : str
        Its content, with or without our part.
    ours : str
        The content of :data:`OURS`.
    """
    names = sorted(_names(ours))
    lines = index.replace(MARK, "").splitlines(keepends=True)
    for node in ast.parse("".join(lines)).body:
        if _defines(node) & set(names):
            assert node.end_lineno is not None
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            lines[first - 1 : node.end_lineno] = [""] * (node.end_lineno - first + 1)
    added = [f"from .{Path(OURS).stem} import {name} as {name}\n" for name in names]
    return "".join([*lines, MARK, *added])


def _names(ours: str) -> set[str]:
    """What users import of our file."""
    found = set().union(*map(_defines, ast.parse(ours).body))
    return {name for name in found if not name.startswith("_")}


def _defines(node: ast.stmt) -> set[str]:
    """The names that a statement at a stub's top level gives to other modules: imports count with ``as`` alone."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname for alias in node.names if alias.asname}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def _on_path(folder: str, file: str) -> Path | None:
    """The first ``folder`` of Python's path that has ``file``."""
    return next((Path(one, folder) for one in sys.path if Path(one, folder, file).is_file()), None)
