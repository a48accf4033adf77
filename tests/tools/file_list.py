"""Writes the list of files into docs/architecture.md: ``python tests/tools/file_list.py``.

The list is the first sentence of each package's and each module's docstring, so that it cannot differ from the code.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGE = ROOT / "docs" / "architecture.md"

BEGIN = "<!-- files: made by `make docs` of the first sentence of each folder and file -->\n"

END = "<!-- end of files -->\n"


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, up to its first full stop or colon that ends a sentence."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = paragraph.partition(". ")[0].rstrip(".:")
    return sentence.replace("``", "`").replace("|", "\\|")


def table(folder: Path) -> str:
    """One folder: a heading, its purpose, and a line for each file."""
    lines = [
        f"### {folder.relative_to(ROOT)}/",
        "",
        f"{first_sentence(folder / '__init__.py')}.",
        "",
        "| | |",
        "|---|---|",
    ]
    files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
    return "\n".join([*lines, *(f"| `{file.name}` | {first_sentence(file)} |" for file in files)]) + "\n"


def file_list() -> str:
    """All packages of ``backends``, ``cli``, ``core`` and ``launchers``, in the order of their names."""
    folders = sorted(
        {file.parent for top in ("backends", "cli", "core", "launchers") for file in (ROOT / top).rglob("__init__.py")}
    )
    return "\n".join(map(table, folders))


def page_with_list(page: str) -> str:
    """The page, with the list as the code has it now."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + file_list() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_list(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
