"""Writes the section "Reference" of each launcher's page of the docstrings: ``python tests/tools/reference.py``."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
from griffe import Docstring, DocstringSection

from metaflow_extensions.gang.core.exceptions import GangException
from metaflow_extensions.gang.core.settings.table import TABLE

ROOT = Path(__file__).resolve().parents[2]

DOCS = ROOT / "docs"

BEGIN = "<!-- reference: made by `make docs` of the docstrings -->\n"

END = "<!-- end of reference -->\n"

PAGES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    # page: the decorator, and what users call (the name that they know, and where it is)
    "deepspeed": (
        "launchers.deepspeed.decorator:DeepspeedDecorator",
        (("current.deepspeed", "launchers.deepspeed.launcher:DeepspeedExecutor"),),
    ),
    "gang": ("core.step.decorator:GangDecorator", (("current.gang", "core.gang.gang:Gang"),)),
    "horovod": ("", (("horovod_run", "launchers.horovod.run:horovod_run"),)),
    "huggingface": (
        "launchers.huggingface.decorator:HuggingFaceCardDecorator",
        (("MetaflowHuggingFaceCardCallback", "launchers.huggingface.callback:MetaflowHuggingFaceCardCallback"),),
    ),
    "jax": ("launchers.jax.decorator:JaxDecorator", (("current.jax", "launchers.jax.cluster:Place"),)),
    "mpi": ("launchers.mpi.decorator:MPIDecorator", (("current.mpi", "launchers.mpi.launcher:MPIExecutor"),)),
    "ray": ("launchers.ray.decorator:RayDecorator", (("current.ray", "launchers.ray.cluster:RayCluster"),)),
    "tensorflow": (
        "launchers.tensorflow.decorator:TensorflowDecorator",
        (("current.tensorflow", "launchers.tensorflow.launcher:TensorflowExecutor"),),
    ),
    "torchrun": (
        "launchers.torchrun.decorator:TorchrunDecorator",
        (
            ("current.torch", "launchers.torchrun.launcher:TorchrunExecutor"),
            ("TorchrunSingleNodeMultiGPU()", "launchers.torchrun.single_node:TorchrunSingleNodeMultiGPU"),
        ),
    ),
}

COMMON = ("BadAttribute", "GangFailed", "GangException", "ProcessFailed", "ToolMissing")
"""The errors that every launcher has; they are in docs/failures.md."""


WITH_FRAMEWORK = ("launchers.huggingface.callback",)
"""Modules that import a framework, which those who write docs need not have."""

INTERNAL = ("form", "lease_port", "own_folder", "own_files")
"""Members that launchers use, and not steps."""


def load(place: str) -> Any:
    """An object of the package by ``module:name``; of one that imports a framework its docstring alone."""
    module, _, name = place.partition(":")
    if module in WITH_FRAMEWORK:
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        return next(ast.get_docstring(node) for node in tree.body if getattr(node, "name", "") == name)
    return getattr(importlib.import_module(f"metaflow_extensions.gang.{module}"), name)


def sections(thing: Any) -> list[DocstringSection]:
    """The parts of a docstring, without what only Metaflow reads."""
    text = ((thing if isinstance(thing, str) else inspect.getdoc(thing)) or "").split("\nMF Add To Current\n")[0]
    return Docstring(text).parse("numpy", warnings=False, warn_unknown_params=False)


def plain(text: str) -> str:
    """One line of Markdown of a docstring's text."""
    text = re.sub(r":(?:attr|meth|class|func|mod):`~?\.*([\w.]+)`", r"`\1`", text)
    text = text.replace("``", "`").replace("|", "\\|")
    # What looks like a tag or a list of a program's arguments stays as it is.
    return " ".join(text.split())


def kind(annotation: object) -> str:
    """A parameter's type, as the docstring has it, without what the column of defaults says."""
    text = re.sub(r",? *(optional|default\b.*)", "", str(annotation or "")).strip(", ")
    return text.replace("|", "or")


def rows(section: DocstringSection, defaults: dict[str, object]) -> list[str]:
    """A table of parameters or attributes."""
    lines = ["| name | type | default | |", "|---|---|---|---|"]
    for item in section.value:
        for name in item.name.split(", "):
            if name.startswith("_"):
                continue
            default = f"`{defaults[name]}`" if name in defaults else ""
            lines.append(f"| `{name}` | {kind(item.annotation)} | {default} | {plain(item.description)} |")
    return lines


def call_defaults(function: Any) -> dict[str, object]:
    """What the arguments are where they are not given."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: repr(p.default) if p.default is not p.empty else "required" for p in parameters}


def described(thing: Any, defaults: dict[str, object]) -> list[str]:
    """Text, parameters, what is returned and raised, and the example of a docstring."""
    lines: list[str] = []
    for section in sections(thing):
        if section.kind.value == "text":
            for paragraph in section.value.split("\n\n"):
                lines += [plain(paragraph), ""]
        elif section.kind.value in ("parameters", "attributes"):
            lines += [*rows(section, defaults), ""]
        elif section.kind.value == "returns":
            found = "; ".join(plain(f"{kind(item.annotation)}: {item.description}") for item in section.value)
            lines += [f"**Returns** {found.rstrip(': ')}", ""]
        elif section.kind.value == "raises":
            lines += ["| raises | when |", "|---|---|"]
            lines += [f"| `{item.annotation}` | {plain(item.description)} |" for item in section.value] + [""]
        elif section.kind.value == "examples":
            text = "\n".join(part for _, part in section.value)
            lines += ["**Example** " + plain(text) if "``" in text else f"```pycon\n{text}\n```", ""]
    return [line if line.strip() else "" for line in lines]


def attributes(decorator: Any) -> list[str]:
    """The decorator's attributes, with the defaults that count."""
    settings = {setting.name: f"{setting.default:g}" for setting in TABLE if setting.attribute}
    defaults = {name: settings.get(name, repr(value)) for name, value in decorator.defaults.items()}
    name = f"@{decorator.name}"
    none = [] if defaults else ["It has no attributes.", ""]
    return [f"### Attributes of `{name}`", "", *described(decorator, defaults), *none]


def members(name: str, thing: Any) -> list[str]:
    """What users call ``name``: a function, or an object with its methods."""
    if isinstance(thing, str):
        return [f"### Arguments of `{name}`", "", *described(thing, {})]
    if not inspect.isclass(thing):
        return [f"### Arguments of `{name}`", "", *described(thing, call_defaults(thing))]
    lines = [f"### Members of `{name}`", "", *described(thing, {})]
    own = [vars(base) for base in reversed(thing.__mro__) if base.__module__.startswith("metaflow_extensions.")]
    for member, value in {name: value for found in own for name, value in found.items()}.items():
        if member.startswith("_") or member in INTERNAL:
            continue
        if isinstance(value, property):
            lines += [f"#### `{name}.{member}` (to read)", "", *described(value, {})]
        elif callable(value) or isinstance(value, staticmethod):
            function = getattr(thing, member)
            lines += [f"#### `{name}.{member}(...)`", "", *described(function, call_defaults(function))]
    return lines


def errors(page: str) -> list[str]:
    """The launcher's own exceptions, and where those of all gangs are."""
    own: dict[str, str] = {}
    if (ROOT / "launchers" / page / "exceptions.py").is_file():
        module = importlib.import_module(f"metaflow_extensions.gang.launchers.{page}.exceptions")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, GangException) and name not in COMMON:
                parents = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
                own[name] = f"| `{name}` | {parents} | {plain(inspect.getdoc(value) or '')} |"
    lines = ["### Errors", ""]
    if own:
        lines += ["| exception | is a | raised when |", "|---|---|---|", *own.values(), ""]
    return [*lines, "The exceptions that all gangs have are on the page of [failures](failures.md).", ""]


def reference(page: str) -> str:
    """The section of one page."""
    decorator, called = PAGES[page]
    lines = ["## Reference", ""]
    if decorator:
        lines += attributes(load(decorator))
    for name, place in called:
        lines += members(name, load(place))
    return "\n".join([*lines, *errors(page)])


def page_with_reference(page: str) -> str:
    """The page as it is, with the section as the code has it now, at its end or where it was."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}{END}"
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + reference(page) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in PAGES:
        (DOCS / f"{name}.md").write_text(page_with_reference(name), encoding="utf-8")
