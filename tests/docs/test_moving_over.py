"""docs/moving-over.md: what it says of each member of the older packages holds of them, and of this package."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metaflow
import pytest
from metaflow.plugins import STEP_DECORATORS

from metaflow_extensions.gang.core.settings.table import BY_NAME

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "moving-over.md"

REQUIRED = inspect.Parameter.empty

MODULES = {
    "torchrun_libs": "metaflow_extensions.torchrun.plugins.torchrun_libs",
    "ray_plugins": "metaflow_extensions.ray.plugins",
    "deepspeed_libs": "metaflow.plugins.deepspeed_libs",
    "hf_callbacks": "metaflow.plugins.hf_callbacks",
    "az_store": "metaflow.plugins.az_store",
    "TorchrunSingleNodeMultiGPU": "metaflow.TorchrunSingleNodeMultiGPU",
}
"""The page's short names."""


@dataclass(frozen=True)
class Row:
    package: str
    member: str
    there: str
    verdict: str
    here: str
    note: str

    @property
    def path(self) -> str:
        """Without the parameter."""
        return self.member.partition("(")[0]

    @property
    def parameter(self) -> str:
        return self.member.partition("(")[2].rstrip(")")


def read_rows() -> Iterator[Row]:
    package = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            package = line[3:].split()[0]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 5, line
            yield Row(package, *(cell.strip("`") if i in (0, 1, 3) else cell for i, cell in enumerate(cells)))


ROWS = list(read_rows())
DECORATORS = {
    str(kind.name): kind for kind in STEP_DECORATORS if kind.__module__.startswith("metaflow_extensions.gang.")
}


def find(path: str) -> Any:
    """What a dotted name stands for: a module, or something in one. Raises ImportError or AttributeError."""
    if path.startswith("current."):
        _, name, *rest = path.split(".")
        types = [
            m[1] for kind in DECORATORS.values() if (m := re.search(rf"^    {name} -> (\S+)$", kind.__doc__, re.M))
        ]
        found: Any = types[0] if types and "." not in types[0] else find(types[0]) if types else None
        assert found is not None, f"no decorator puts {name} on current"
        for one in rest:
            found = member_of(found, one)
        return found
    first, _, others = path.partition(".")
    pieces = f"{MODULES.get(first, first)}{'.' if others else ''}{others}".split(".")
    for end in range(len(pieces), 0, -1):
        try:
            found = importlib.import_module(".".join(pieces[:end]))
        except ModuleNotFoundError:
            continue
        for one in pieces[end:]:
            found = getattr(found, one)
        return found
    raise ImportError(path)


def member_of(kind: Any, name: str) -> Any:
    """A member of the objects of a class, also one that the constructor or a dataclass sets."""
    if hasattr(kind, name):
        return getattr(kind, name)
    assert name in getattr(kind, "__annotations__", {}) or f"self.{name}" in inspect.getsource(kind.__init__), name
    return None


def default_here(row: Row) -> Any:
    if row.path.startswith("@"):
        default = DECORATORS[row.path[1:]].defaults[row.parameter]
        return BY_NAME[row.parameter].default if default is None and row.parameter in BY_NAME else default
    return inspect.signature(find(row.path)).parameters[row.parameter].default


def value(text: str) -> Any:
    return REQUIRED if text == "required" else ast.literal_eval(text)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{row.package}: {row.member}", marks=pytest.mark.slow if "allback" in row.member else ())
        for row in ROWS
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_page_says_of_a_member_holds_of_this_package(row: Row) -> None:
    assert row.verdict in ("kept", "changed", "dropped"), row
    assert row.verdict == "kept" or row.note, f"why is {row.member} {row.verdict}?"
    for new in re.findall(r"New name: `([^`]+)`", row.note):
        find(new)
    if row.verdict == "dropped":
        with pytest.raises((ImportError, AttributeError)):
            find(row.path)
    elif row.member.startswith("$"):
        sources = [*(ROOT / "launchers").rglob("*.py")]
        assert any(row.member[1:] in path.read_text() for path in sources)
    elif row.parameter:
        here, there = value(row.here), value(row.there)
        assert default_here(row) == here
        if row.verdict == "kept":
            assert here == there or (here is None and there in ({}, []))
    elif row.here:
        find(row.here)
    elif row.path.startswith("@"):
        assert row.path[1:] in DECORATORS
        assert hasattr(metaflow, row.path[1:])
    else:
        find(row.path)


@pytest.mark.slow  # transformers, as for the rows of its callbacks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arguments_are_in_the_older_order() -> None:
    calls: dict[str, list[str]] = {}
    for row in ROWS:
        if row.parameter and not row.path.startswith("@"):
            calls.setdefault(row.path, []).append(row.parameter)
    for path, parameters in calls.items():
        ours = [name for name in inspect.signature(find(path)).parameters if name != "self"]
        places = [ours.index(name) for name in parameters]
        assert places == sorted(places), path
        if path.startswith(("current.", "TorchrunSingleNodeMultiGPU")):
            assert ours[: len(parameters)] == parameters, path


# -- the older packages ------------------------------------------------------------------------------------------------

OBJECTS = {
    "TorchrunExecutor": "current.torch",
    "TorchrunSingleNodeMultiGPU": "TorchrunSingleNodeMultiGPU",
    "MPIExecutor": "current.mpi",
    "DeepspeedExecutor": "current.deepspeed",
    "DeepspeedHFTrainerS3Sync": "hf_callbacks.DeepspeedHFTrainerS3Sync",
    "DeepspeedHFTrainerAzureBlobSync": "hf_callbacks.DeepspeedHFTrainerAzureBlobSync",
    "MetaflowHuggingFaceCardCallback": "deepspeed_libs.hugging_face.card_callback.MetaflowHuggingFaceCardCallback",
    "AzureBlob": "az_store.AzureBlob",
}
"""What flows use of the older packages, by the class's name there; of the last four the constructors, too."""


def surface(wheel: Path) -> dict[str, Any]:
    """The attributes, arguments and members of an older package, with their defaults: read, not imported."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(wheel) as archive:
        trees = {n: ast.parse(archive.read(n)) for n in archive.namelist() if n.endswith(".py")}
    constants: dict[str, Any] = {}
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                constants.update({t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)})

    def evaluated(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "older", "eval"), {}, dict(constants))

    for path, tree in trees.items():
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            own = {
                t.id: n.value
                for n in kind.body
                if isinstance(n, ast.Assign)
                for t in n.targets
                if isinstance(t, ast.Name)
            }
            if "name" in own and "defaults" in own:
                attributes = evaluated(own["defaults"])
                found |= {f"@{evaluated(own['name'])}({a})": default for a, default in attributes.items()}
                if not attributes:
                    found[f"@{evaluated(own['name'])}"] = None
            elif path.endswith("/exceptions.py"):
                found[f"exception {kind.name}"] = None
            elif kind.name in OBJECTS:
                found |= members(kind, OBJECTS[kind.name], evaluated)
    return found


def members(kind: ast.ClassDef, name: str, evaluated: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in (node for node in kind.body if isinstance(node, ast.FunctionDef)):
        parameters = method.args.args[1:]
        defaults = [REQUIRED] * (len(parameters) - len(method.args.defaults)) + [
            evaluated(d) for d in method.args.defaults
        ]
        if method.name == "__init__":
            if name.startswith("current."):
                targets = [n for n in ast.walk(method) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
                found |= {f"{name}.{t.attr}": None for t in targets if not t.attr.startswith("_")}
                continue
            call = name
        elif method.name.startswith(("_", "on_")):
            continue
        else:
            call = f"{name}.{method.name}"
        found |= {f"{call}({p.arg})": default for p, default in zip(parameters, defaults, strict=True)}
    return found


@pytest.mark.slow
def test_the_page_has_every_member_of_the_older_packages(tmp_path: Path) -> None:
    titles = re.findall(r"^## (metaflow-\S+) (\S+)$", PAGE.read_text(), re.MULTILINE)
    assert len(titles) == 5
    wanted = [f"{package}=={version}" for package, version in titles]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), *wanted]
    subprocess.run(argv, check=True, timeout=120)
    for package, _ in titles:
        (wheel,) = tmp_path.glob(f"{package.replace('-', '_')}-*.whl")
        rows = {row.member: row for row in ROWS if row.package == package}
        told = {member: row.there for member, row in rows.items()}
        for member, default in surface(wheel).items():
            if member.startswith("exception "):
                assert any(path.endswith(f".{member.split()[1]}") for path in rows), f"{package}: {member}"
            else:
                assert member in told, f"{package}: {member}"
                assert "(" not in member or value(told[member]) == default, f"{package}: {member}"
