"""The layout of the code: who may import whom, how large files and folders get, and the page that describes it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT, TESTS

sys.path.insert(0, str(TESTS / "tools"))
import file_list

MOST_LINES = 300

MOST_FILES = 12

MOST_LINES_OF_TESTS = 350
"""Of a file that tests use. Files of tests have no limit: each has one subject."""

GUARD = (
    "loop",
    "processes",
    "rank_reports",
    "host",
    "samples",
    "export",
    "stalls",
    "children",
    "channel",
    "tls",
    "coordinator",
    "file_broadcast",
    "remote_command",
    "hub_link",
    "card",
    "node",
)
"""The folders of the guard; each imports only those before it, and the guard's own modules, such as text.py."""

MODULES_OF_CORE = ""

ALLOWED = {
    "guard": (),
    MODULES_OF_CORE: ("guard",),
    "machine": (MODULES_OF_CORE,),
    "storage": (MODULES_OF_CORE,),
    "ranks": (MODULES_OF_CORE, "guard"),
    "guard_client": (MODULES_OF_CORE, "guard"),
    "rendezvous": (MODULES_OF_CORE, "guard", "machine"),
    "card": (MODULES_OF_CORE, "rendezvous"),
    "export": (MODULES_OF_CORE, "rendezvous"),
    "dry_run": (MODULES_OF_CORE, "guard"),
    "gang": (MODULES_OF_CORE, "guard", "machine", "guard_client", "dry_run"),
    "preflight": (MODULES_OF_CORE, "guard", "gang"),
    "remote_shell": (MODULES_OF_CORE, "guard", "gang"),
    "calls": (MODULES_OF_CORE, "guard", "storage", "ranks", "guard_client", "gang", "dry_run"),
    "step": (
        MODULES_OF_CORE,
        "guard",
        "machine",
        "storage",
        "guard_client",
        "rendezvous",
        "gang",
        "preflight",
        "card",
        "export",
    ),
}
"""The folders of core, and which others each may import. The modules of core itself, such as logs.py, count as one of
them, and metaflow_compat and settings as parts of it.
"""


COMPAT = ("core.metaflow_compat", "backends.metaflow_compat")
"""The only users of what is private in Metaflow; the second one has what only backends need."""


def modules() -> dict[str, Path]:
    """All modules of backends, cli, core and launchers, by their dotted names."""
    found = {}
    for top in ("backends", "cli", "core", "launchers"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules of ours that module ``name`` imports, also for types only."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                yield target if target in MODULES else base


GRAPH = {name: {target for target in imports(name) if target in MODULES} for name in MODULES}


def circles() -> list[list[str]]:
    """Groups of modules that reach each other by imports."""
    reached: dict[str, set[str]] = {}
    for start in GRAPH:
        seen: set[str] = set()
        front = list(GRAPH[start])
        while front:
            name = front.pop()
            if name not in seen:
                seen.add(name)
                front += GRAPH[name]
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in GRAPH if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def test_no_circle_of_imports() -> None:
    assert circles() == []


def test_core_names_no_launcher_and_no_backend_and_none_of_these_imports_another() -> None:
    for name, targets in GRAPH.items():
        top, _, rest = name.partition(".")
        for target in targets:
            target_top, _, target_rest = target.partition(".")
            if target_top == "core" or (top == "cli" and target_top != "plugins"):
                continue
            assert target_top == top, f"{name} imports {target}"
            folder = target_rest.split(".")[0]
            assert folder == rest.split(".")[0] or target.startswith(COMPAT), f"{name} imports {target}"


def folder_of_core(name: str) -> str:
    """The key of :data:`ALLOWED` for module ``name``."""
    parts = name.split(".")
    is_folder = len(parts) > 2 or (len(parts) == 2 and MODULES[name].name == "__init__.py")
    return parts[1] if is_folder and parts[1] not in ("metaflow_compat", "settings") else MODULES_OF_CORE


def test_each_folder_of_core_imports_only_what_it_may() -> None:
    # The table itself has no circle: each folder names only those before it.
    for index, allowed in enumerate(ALLOWED.values()):
        assert set(allowed) <= set(list(ALLOWED)[:index])
    for name, targets in GRAPH.items():
        if name.startswith("core."):
            folder = folder_of_core(name)
            for target in targets:
                assert folder_of_core(target) in {folder, *ALLOWED[folder]}, f"{name} imports {target}"


def test_the_guard_imports_nothing_of_the_rest() -> None:
    for name, targets in GRAPH.items():
        if name.startswith("core.guard."):
            assert all(target.startswith("core.guard") for target in targets), name


def test_the_settings_are_replaced_at_two_moments() -> None:
    """When the task sets its guard up, and when node 0's come with the list of nodes."""
    users = {name for name, path in MODULES.items() if "use_settings(" in path.read_text()} - {"core.guard.settings"}
    at_setup = {"core.guard.node.requests.task_requests", "core.guard.single_node"}
    assert users == at_setup | {"core.guard.hub_link.hub_link"}


def test_each_folder_of_the_guard_imports_only_those_before_it() -> None:
    def place(name: str) -> int | None:
        parts = name.split(".")
        return GUARD.index(parts[2]) if len(parts) > 3 or MODULES[name].name == "__init__.py" else None

    for name, targets in GRAPH.items():
        if name.startswith("core.guard.") and (own := place(name)) is not None:
            for target in targets - {"core.guard"}:
                assert (place(target) or 0) <= own, f"{name} imports {target}"


def test_every_file_has_at_most_300_lines() -> None:
    long = [str(path) for path in MODULES.values() if len(path.read_text().splitlines()) > MOST_LINES]
    assert not long, "one file has one idea: split it"


def test_every_folder_has_at_most_12_files_and_says_what_it_is_for() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        files = list(folder.glob("*.py"))
        assert len(files) <= MOST_FILES, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_the_folders_of_the_tests_are_as_small() -> None:
    """At most 12 files of tests, and at most 12 that these use."""
    for folder in {path.parent for path in TESTS.rglob("*.py")}:
        tests, others = (
            [path for path in folder.glob("*.py") if path.name.startswith("test_") == is_test]
            for is_test in (True, False)
        )
        assert len(tests) <= MOST_FILES and len(others) <= MOST_FILES, folder
        for path in others:
            assert len(path.read_text().splitlines()) <= MOST_LINES_OF_TESTS, path
            if path.name == "__init__.py":
                assert ast.get_docstring(ast.parse(path.read_text())), path


def test_docstrings_refer_to_modules_that_exist() -> None:
    known = {part for name in MODULES for part in name.split(".")} | sys.stdlib_module_names
    for name, path in MODULES.items():
        for kind, target in re.findall(r":(mod|func|class|data|exc):`~?\.*([\w.]+)`", path.read_text(encoding="utf-8")):
            *owner, last = target.split(".")
            module = last if kind == "mod" else owner[-1] if owner else ""
            assert not module or module in known or module[0].isupper(), f"{name}: {target}"


def test_the_page_lists_every_file() -> None:
    page = file_list.PAGE.read_text(encoding="utf-8")
    assert page == file_list.page_with_list(page), "run `make docs`"


PUBLIC = {
    "metaflow": {"FlowSpec", "current", "metaflow_config"}
    | {"Flow", "Run", "Step", "Task", "get_metadata", "metadata", "namespace"},
    "metaflow.cards": {"Markdown", "ProgressBar", "VegaChart"},
    "metaflow.decorators": {"StepDecorator"},
    "metaflow.exception": {"MetaflowException", "MetaflowNotFound"},
    "metaflow.metaflow_config": None,
}
"""What counts as Metaflow's interface: what its documentation names, the base of decorators with its hooks, the base of
exceptions, and the settings (None: all names).
"""

OTHERS = {"_getframe", "_run_exitfuncs", "_IOBase", "_sslobj", "_cluster_types"}
"""Private names of Python and of frameworks that we use outside of metaflow_compat."""

VARIABLE = re.compile(r"MF_[A-Z_]+|MFLOG_[A-Z_]*|METAFLOW_RUNTIME_ENVIRONMENT|AWS_BATCH_[A-Z_]+|ubf_(control|task)")


def outside_of_compat() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        if not name.startswith(COMPAT):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def is_own(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def test_only_metaflow_compat_imports_metaflows_internals() -> None:
    for name, tree in outside_of_compat():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "metaflow" for alias in node.names), name
            elif (
                isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "metaflow"
            ):
                public = PUBLIC.get(str(node.module), set())
                assert not name.startswith("core.guard."), f"{name}: the guard imports nothing of Metaflow"
                for alias in node.names:
                    assert public is None or alias.name in public, f"{name} imports {node.module}.{alias.name}"


def test_only_metaflow_compat_uses_private_attributes_and_variables_of_metaflow() -> None:
    """A private name that none of our files defines belongs to somebody else."""
    ours: set[str] = set()
    for _, tree in outside_of_compat():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
                ours.add(node.attr)
    for name, tree in outside_of_compat():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert node.attr in ours | OTHERS, f"{name} uses .{node.attr}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not VARIABLE.fullmatch(node.value), f"{name} names {node.value}"
