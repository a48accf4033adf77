"""Editors and type checkers see our decorators and what is on ``current``: docs/editors.md."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from support.paths import ROOT

from metaflow_extensions.gang.cli.stubs import MARK, merged

SAMPLES = ROOT / "tests" / "samples" / "editor"

WRONG = {18, 19, 20, 26}
"""The wrong lines of wrong.py."""

OF_STUB_PACKAGE = frozenset({16, 23})
"""Lines of right.py that Metaflow's stub packages refuse: their config_expr() gives a type that no attribute takes, in
Metaflow's own decorators neither, and their current.parallel has no members.
"""


def stub_file() -> object:
    spec = importlib.util.spec_from_file_location("stub_file", ROOT / "tests" / "tools" / "stub_file.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stub_file"] = module
    spec.loader.exec_module(module)
    return module


def test_the_stubs_are_those_of_the_code() -> None:
    made = stub_file()
    files = made.files()  # type: ignore[attr-defined]
    assert {path.name for path in (ROOT / "stubs" / "metaflow").iterdir()} == set(files)
    for name, content in files.items():
        assert (ROOT / "stubs" / "metaflow" / name).read_text() == content, "run `make docs`"
    for name, kind in made.decorators().items():  # type: ignore[attr-defined]
        told = [attribute.name for attribute in made.attributes(kind)]  # type: ignore[attr-defined]
        assert sorted(told) == sorted(kind.defaults), name


def test_our_names_take_the_place_of_others_once() -> None:
    kept = "from .flowspec import FlowSpec as FlowSpec\n"
    index = f"from .metaflow_current import current as current\n{kept}@overload\ndef gang(f): ...\n"
    once = merged(index, "current: int\ndef gang(f): ...\n")
    assert once == (
        f"from .flowspec import FlowSpec as FlowSpec\n{MARK}from ._gang import current as current\n"
        "from ._gang import gang as gang\n"
    )
    assert merged(once, "current: int\ndef gang(f): ...\n") == once


def mypy(python: Path, sample: str, cwd: Path) -> set[int]:
    argv = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        str(python),
        "--check-untyped-defs",
        "--output",
        "json",
    ]
    cache = ["--config-file", "", "--cache-dir", str(cwd / "cache")]
    done = subprocess.run([*argv, *cache, str(SAMPLES / sample)], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["line"] for one in found if one["severity"] == "error"}


def pyright(python: Path, sample: str, cwd: Path) -> set[int]:
    (cwd / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard", "include": [str(SAMPLES)]}))
    argv = [sys.executable, "-m", "basedpyright", "--pythonpath", str(python), "--project", str(cwd), "--outputjson"]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {
        one["range"]["start"]["line"] + 1
        for one in found
        if one["severity"] == "error" and one["file"].endswith(f"/{sample}")
    }


def check(python: Path, cwd: Path, of_stub_package: frozenset[int] = frozenset()) -> None:
    for checker in (mypy, pyright):
        assert checker(python, "wrong.py", cwd) == WRONG
        assert checker(python, "right.py", cwd) == of_stub_package


@pytest.mark.slow
def test_both_checkers_find_each_wrong_line_and_no_other(tmp_path: Path) -> None:
    check(Path(sys.executable), tmp_path)


@pytest.mark.big
@pytest.mark.parametrize(
    "packages",
    [
        ("metaflow=={}", "metaflow-stubs=={}"),
        ("ob-metaflow==2.19.39.1", "ob-metaflow-stubs==6.0.12.53"),
        ("ob-metaflow==2.19.39.1",),
    ],
    ids=" ".join,
)
def test_with_a_stub_package_it_takes_one_command(packages: tuple[str, ...], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [package.format(metadata.version("metaflow")) for package in packages]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "requests", "boto3", str(ROOT)], check=True, timeout=280, cwd=tmp_path)
    subprocess.run([*install, "--no-deps", *wanted], check=True, timeout=280, cwd=tmp_path)
    subprocess.run([str(python), "-m", "metaflow_extensions.gang.cli", "stubs"], check=True, timeout=60, cwd=tmp_path)
    check(python, tmp_path, OF_STUB_PACKAGE if any("-stubs" in package for package in packages) else frozenset())
