"""Writes stubs/metaflow/, which type checkers and editors read in place of metaflow/__init__.py (docs/editors.md).

Run it as ``python tests/tools/stub_file.py`` after ``make package``; ``make docs`` does. Name and type of an attribute
are those of the decorator's docstring, its default that of the class; what is on ``current`` is of "MF Add To Current".
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
from metaflow.plugins import STEP_DECORATORS

from metaflow_extensions.gang.toplevel import gang_toplevel

FOLDER = Path(__file__).resolve().parents[2] / "stubs" / "metaflow"

OURS = "metaflow_extensions.gang."

NAMES = {
    ".client": "DataArtifact Flow Metaflow Run Step Task default_metadata default_namespace get_metadata get_namespace "
    "inspect_spin metadata namespace",
    ".decorators": "step",
    ".flowspec": "FlowSpec",
    ".includefile": "IncludeFile",
    ".metaflow_profile": "profile",
    ".multicore_utils": "parallel_imap_unordered parallel_map",
    ".parameters": "JSONType JSONTypeClass Parameter",
    ".plugins.datatools": "S3",
    ".runner.deployer": "DeployedFlow Deployer",
    ".runner.metaflow_runner": "Runner",
    ".runner.nbdeploy": "NBDeployer",
    ".runner.nbrun": "NBRunner",
    ".user_configs.config_parameters": "Config ConfigValue",
    ".user_decorators.user_flow_decorator": "FlowMutator",
    ".user_decorators.user_step_decorator": "StepMutator USER_SKIP_STEP UserStepDecorator user_step_decorator",
}
"""What metaflow/__init__.py has of its own, by module. Names that only newer versions have do no harm in older ones."""

SUBMODULES = "cards", "tuple_util"

FRONT = '''"""Metaflow for type checkers and editors, with metaflow-gang's part. Made by `make docs` of the code."""

from typing import Any

'''

REST = """
__version__: str

# Any, as a value of a configuration stands for any attribute's: @torchrun(nproc_per_node=config_expr("config.gpus")).
def config_expr(expr: str) -> Any: ...

# What Metaflow makes as it is imported: its own decorators, and the names of other extensions.
def __getattr__(name: str) -> Any: ...
"""

HEAD = '''"""What metaflow-gang adds to Metaflow, for type checkers and editors. Made by `make docs` of the code."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

'''

KNOWN = (
    "str int float bool bytes object None Any dict list tuple set Callable Mapping Sequence Iterable Iterator Literal "
    "Path os.PathLike PathLike T Generator"
)
"""What a type in the file may be made of."""

CALLBACK = """from typing import Any

# Its base is of transformers, which checkers would read for minutes.
MetaflowHuggingFaceCardCallback: Any
"""

OF_GANG = "core.gang.node.Node", "core.gang.stacks.StackGroup", "core.gang.stacks.Stacks"
"""Classes of what ``current.gang`` gives."""

BETWEEN = """
_Step = TypeVar("_Step", bound=Callable[..., Any])

class _Current(Current):
    # What other decorators put here: card, parallel, checkpoint ...
    def __getattr__(self, name: str) -> Any: ...
"""


@dataclass(frozen=True)
class Attribute:
    """An attribute as a decorator's docstring has it: its type as Python's annotations have it, None included."""

    name: str
    type: str


@dataclass(frozen=True)
class Member:
    """What a decorator puts on ``current``."""

    name: str
    type: str
    doc: str


def decorators() -> dict[str, Any]:
    """Our decorators' classes by name, as Metaflow has loaded them."""
    return {
        kind.name: kind
        for kind in sorted(STEP_DECORATORS, key=lambda k: str(k.name))
        if kind.__module__.startswith(OURS)
    }


def attributes(kind: Any) -> list[Attribute]:
    """What the docstring of the decorator ``kind`` has under "Parameters"."""
    section = re.search(r"\nParameters\n-+\n(.*?)(?=\n\n\S|\Z)", inspect.cleandoc(kind.__doc__), re.DOTALL)
    lines = section[1].splitlines() if section else []
    found = []
    for line in lines:
        if match := re.match(r"(\w+) : (.+?)(, optional)?(?:, default .*)?$", line):
            found.append(Attribute(match[1], f"{match[2]} | None" if match[3] else match[2]))
    return found


def members(kind: Any) -> list[Member]:
    """What the docstring of ``kind`` has under "MF Add To Current"."""
    _, _, text = inspect.cleandoc(kind.__doc__).partition("\nMF Add To Current\n")
    found = re.finditer(r"^(\w+) -> (\S+)\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    return [Member(m[1], m[2], textwrap.dedent(m[3]).partition("\n@@ ")[0].strip()) for m in found]


def docstring(text: str, indent: str) -> str:
    quoted = f'"""{text}"""' if "\n" not in text else f'"""{text}\n"""'
    return textwrap.indent(quoted, indent) + "\n"


def decorator(name: str, kind: Any) -> str:
    """The two forms of a decorator: alone above a step, and with attributes."""
    text = inspect.cleandoc(kind.__doc__).partition("\nMF Add To Current\n")[0].strip()
    lines = [f"    {a.name}: {a.type} = {kind.defaults[a.name]!r},\n".replace("'", '"') for a in attributes(kind)]
    given = f"\n    *,\n{''.join(lines)}" if lines else ""
    alone = f"\n@overload\ndef {name}(step: _Step, /) -> _Step:\n{docstring(text, '    ')}"
    return f"{alone}\n@overload\ndef {name}({given}) -> Callable[[_Step], _Step]:\n{docstring(text, '    ')}"


def signature(name: str, function: Any, known: set[str], indent: str) -> str:
    """A function or method with its types; one that users cannot name is Any."""
    found = inspect.signature(function)
    parameters = [p.replace(annotation=_type(p.annotation, known)) for p in found.parameters.values()]
    parameters = [p if p.default is p.empty else p.replace(default=_Dots()) for p in parameters]
    told = found.replace(parameters=parameters, return_annotation=_type(found.return_annotation, known))
    text = docstring(inspect.getdoc(function) or "", indent + "    ") if function.__doc__ else f"{indent}    ...\n"
    return f"{indent}def {name}{str(told).replace(chr(39), '')}:\n{text}"


class _Dots:
    def __repr__(self) -> str:
        return "..."


def _type(annotation: Any, known: set[str]) -> Any:
    """An annotation as text, or Any where it has a name that the file does not know."""
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text if set(re.findall(r"[A-Za-z_][\w.]*", re.sub(r'"[^"]*"', "", text))) <= known else "Any"


def class_stub(kind: Any, known: set[str]) -> str:
    """A class with what users see of it, so that checkers need not read what it imports."""
    lines = [f"\nclass {kind.__name__}:\n", docstring(inspect.getdoc(kind) or "", "    ")]
    fields = {} if not hasattr(kind, "__dataclass_fields__") else kind.__dataclass_fields__
    lines += [f"    {name}: {_type(f.type, known)}\n" for name, f in fields.items() if not name.startswith("_")]
    if not fields:
        init = inspect.getsource(kind.__init__) if "__init__" in vars(kind) else ""
        lines += [f"    {name}: Any\n" for name in sorted(set(re.findall(r"self\.([a-z]\w*)\b[^\n=(]*=[^=]", init)))]
    every = {}
    for base in reversed(kind.__mro__):
        every.update(vars(base) if base.__module__.startswith(OURS) else {})
    for name, value in every.items():
        public = not name.startswith("_") or name in ("__len__", "__iter__", "__getitem__")
        if name == "__init__" and not fields:
            lines.append(signature(name, value, known, "    "))
        elif public and isinstance(value, property):
            lines.append("    @property\n" + signature(name, value.fget, known, "    "))
        elif public and isinstance(value, staticmethod):
            lines.append("    @staticmethod\n" + signature(name, value.__func__, known, "    "))
        elif public and inspect.isfunction(value):
            lines.append(signature(name, value, known, "    "))
        elif public and name not in fields and not inspect.isroutine(value):
            lines.append(f"    {name}: Any\n")
    return "".join(lines)


def loaded(path: str) -> Any:
    """A class of this package by its dotted name."""
    return getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])


def ours() -> tuple[str, list[str]]:
    """The content of _gang.pyi, and the names in it for users."""
    kinds = decorators()
    on_current = {member.name: member for kind in kinds.values() for member in members(kind)}
    classes = [loaded(OURS + path) for path in OF_GANG]
    classes += [loaded(path) for path in sorted({m.type for m in on_current.values() if "." in m.type})]
    imports, functions = [], []
    names = ["current", *kinds]
    for name in gang_toplevel.__all__:
        value = getattr(gang_toplevel, name)
        if inspect.ismodule(value):
            imports.append(f"from . import {name} as {name}")
        elif inspect.isclass(value):
            classes.append(value)
        else:
            functions.append((name, value))
        names.append(name)
    imports.append("from .metaflow_current import Current")
    known = set(KNOWN.split()) | {kind.__name__ for kind in classes}
    text = HEAD + "\n".join(sorted(imports)) + "\n" + "".join(class_stub(kind, known) for kind in classes)
    text += "".join("\n" + signature(name, value, known, "") for name, value in functions) + BETWEEN
    for member in sorted(on_current.values(), key=lambda m: m.name):
        text += f"    @property\n    def {member.name}(self) -> {member.type.rpartition('.')[2]}:\n"
        text += docstring(member.doc, " " * 8)
    return text + "\ncurrent: _Current\n" + "".join(decorator(name, kind) for name, kind in kinds.items()), names


def front(names: list[str]) -> str:
    """The content of __init__.pyi."""
    lines = [f"from ._gang import {name} as {name}" for name in names]
    lines += [f"from {module} import {one} as {one}" for module, ones in NAMES.items() for one in ones.split()]
    lines += [f"from . import {name} as {name}" for name in SUBMODULES]
    return FRONT + "\n".join(sorted(lines)) + "\n" + REST


def files() -> dict[str, str]:
    """All files of the folder, by name."""
    text, names = ours()
    return {
        "__init__.pyi": front(names),
        "_gang.pyi": text,
        "huggingface_card_callback.pyi": CALLBACK,
    }


if __name__ == "__main__":
    for file, content in files().items():
        (FOLDER / file).write_text(content, encoding="utf-8")
