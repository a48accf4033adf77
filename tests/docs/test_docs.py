"""The documentation says what is so: output is real, code runs, links lead somewhere, nothing is left out."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.examples import EXAMPLES, LIMIT, training  # noqa: F401 - a fixture
from support.flows import FlowRunner, flow_environment
from support.paths import ROOT, TESTS
from support.requirements import require_packages

sys.path.insert(0, str(TESTS / "tools"))
import settings_page

from metaflow_extensions.gang.core.exceptions import GangException
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.guard.settings import DEFAULTS
from metaflow_extensions.gang.core.settings.table import TABLE
from metaflow_extensions.gang.core.step.decorator import GangDecorator
from metaflow_extensions.gang.launchers.jax.cluster import Place
from metaflow_extensions.gang.launchers.jax.decorator import JaxDecorator
from metaflow_extensions.gang.launchers.ray.cluster import RayCluster, RayNode
from metaflow_extensions.gang.launchers.ray.decorator import RayDecorator
from metaflow_extensions.gang.launchers.tensorflow.decorator import TensorflowDecorator
from metaflow_extensions.gang.launchers.tensorflow.launcher import TensorflowExecutor
from metaflow_extensions.gang.launchers.tensorflow.roles import Roles
from metaflow_extensions.gang.launchers.torchrun.decorator import TorchrunDecorator
from metaflow_extensions.gang.launchers.torchrun.launcher import TorchrunExecutor
from metaflow_extensions.gang.launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU

ROOT = ROOT
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOW_LIMIT = 120.0  # seconds: tells "slow" from "hangs" on a busy machine


def text(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


def all_python() -> list[Any]:
    return [
        pytest.param(body, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, body in enumerate(blocks(page, "python"))
    ]


def all_flows() -> list[Any]:
    return [case for case in all_python() if "(FlowSpec)" in case.values[0]]


# ---------------------------------------------------------------- output


def plain(line: str) -> str:
    """A line of Metaflow's output without what differs from run to run and from machine to machine."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (\[\d+/\w+/\w+ \(pid \d+\)\] ?)?", "", line)
    line = re.sub(r"run-id \d+", "run-id N", line)
    return line.rstrip()


def shown_failure() -> list[str]:
    section = text("docs/start.md").split("## 5. See it fail", 1)[1]
    match = FENCE.search(section)
    assert match is not None
    return match[2].splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_the_failure_in_the_first_pages_is_real_output(flow_run: FlowRunner) -> None:
    output = flow_run(EXAMPLES / "torchrun" / "fails_on_purpose.py").fails(LIMIT)
    real = iter([plain(line) for line in output.replace(f"{ROOT}/", "").splitlines()])
    shown = [plain(line) for line in shown_failure() if line != "..."]
    assert len(shown) > 15 and any("rank 3 exited with code 1" in line for line in shown)
    if f"({socket.gethostname()}): rank 3 raised" in output:
        # Other ranks missed rank 3 before its process, which had raised, had ended: then there is no exit code to tell.
        shown = [line.replace("rank 3 exited with code 1", "rank 3 raised") for line in shown]
    for line in shown:
        # The machine that it was shown on has a name of its own.
        line = re.sub(r"(was on node \d) \([^)]+\)", rf"\1 ({socket.gethostname()})", line)
        # An iterator: each line has to come after the one before.
        assert line in real, f"{line!r} is shown in docs/start.md, but not printed, or not in this place, in:\n{output}"


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_the_first_flow_of_the_readme_trains(flow_run: FlowRunner) -> None:
    first = blocks(ROOT / "README.md", "python")[0]
    assert blocks(ROOT / "docs" / "start.md", "python") == [first]
    run = flow_run(first).ok(LIMIT)
    losses = run.artifact("join", "losses")
    assert len(losses) == 4 and all(loss < 1e-3 for loss in losses)


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("code", all_python())
def test_python_compiles(code: str) -> None:
    compile(code, "<documentation>", "exec")


@pytest.mark.parametrize("code", all_flows())
def test_flows_are_accepted_by_metaflow(code: str, tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    file.write_text(code)
    # @kubernetes and @batch insist on a datastore in a cloud; nothing is read from it here.
    remote = "@kubernetes" in code or "@batch" in code
    options = ["--datastore", "s3" if remote else "local", "--metadata", "local"]
    shown = subprocess.run(
        [sys.executable, str(file), *options, "show"],
        env=flow_environment({"METAFLOW_DATASTORE_SYSROOT_S3": "s3://no-such-bucket/metaflow"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SHOW_LIMIT,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    steps = re.findall(r"^    def (\w+)\(self", code, re.MULTILINE)
    for step in steps:
        assert f"Step {step}" in shown.stdout + shown.stderr


def test_the_first_pages_show_every_backend() -> None:
    pages = (ROOT / "README.md", ROOT / "docs" / "choosing.md")
    flows = [body for page in pages for body in blocks(page, "python") if "(FlowSpec)" in body]
    for decorator in ("@torchrun", "@kubernetes(gpu=8)", "@batch(gpu=8)"):
        assert any(decorator in flow for flow in flows), decorator
    for decorator in ("@kubernetes(gpu=8)", "@batch(gpu=8)", "@slurm(gpu=8)"):
        assert decorator in text("README.md")


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 120


# ---------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    for target in targets:
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, front = set(), [ROOT / "README.md"]
    while front:
        page = front.pop()
        reached.add(page)
        targets = re.findall(r"\]\(([\w./-]+\.md)", FENCE.sub("", page.read_text()))
        front += {(page.parent / target).resolve() for target in targets} - reached
    assert reached >= set(PAGES)


@pytest.mark.slow
def test_the_site_is_complete_and_needs_no_network(tmp_path: Path) -> None:
    require_packages("mkdocs", "material")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # Strict: a link or an anchor that leads nowhere fails it.
    built = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=SHOW_LIMIT,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    for page in pages:
        fetched = re.findall(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>", page.read_text())
        assert fetched == [], f"{page.name} reads from another host"
    assert (tmp_path / "site" / "search" / "search_index.js").is_file(), "the search works from files"
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / "site" / page.relative_to(ROOT / "docs").with_suffix(".html")) in pages
    assert (tmp_path / "site" / "source" / "examples" / "torchrun" / "digits.py.html") in pages, "what pages link to"


# ---------------------------------------------------------------- nothing left out


@pytest.mark.parametrize(
    ("decorator", "page"),
    [
        (GangDecorator, "docs/gang.md"),
        (JaxDecorator, "docs/jax.md"),
        (RayDecorator, "docs/ray.md"),
        (TensorflowDecorator, "docs/tensorflow.md"),
        (TorchrunDecorator, "docs/torchrun.md"),
    ],
)
def test_every_attribute_is_told_with_its_default(decorator: Any, page: str) -> None:
    # None: a setting may say it, and where that does not either, the default of that counts.
    settings = {setting.name: setting.default for setting in TABLE if setting.attribute}
    for name, default in decorator.defaults.items():
        told = f"{settings[name]:g}" if name in settings else default
        assert default is None or name not in settings
        assert f"| `{name}` | {told} |" in text(page), name


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def a_gang() -> Gang:
    return Gang(0, (Node(0, "127.0.0.1", "here", 1, 0),), "", None)  # type: ignore[arg-type]


def test_every_member_of_current_gang_is_told() -> None:
    page = text("docs/gang.md")
    for name in public(a_gang()):
        # Members are the first column of a table, methods have a heading.
        assert f"| `{name}` |" in page or f"### `{name}(" in page, name
    for name in Node.__dataclass_fields__:
        assert f"`{name}`" in page, name


def test_every_member_of_current_torch_is_told() -> None:
    page = text("docs/torchrun.md")
    for name in public(TorchrunExecutor(a_gang(), None, "")):
        assert f"`current.torch.{name}" in page, name
    for name in public(TorchrunSingleNodeMultiGPU()):
        assert f"TorchrunSingleNodeMultiGPU().{name}(" in page, name


def test_every_member_of_current_ray_is_told() -> None:
    page = text("docs/ray.md")
    for name in public(RayCluster("", "", (), None, a_gang())):
        assert f"| `{name}` |" in page or f"| `{name}(" in page, name
    for name in RayNode.__dataclass_fields__:
        assert f"`{name}`" in page, name


def test_every_member_of_current_tensorflow_is_told() -> None:
    page = text("docs/tensorflow.md")
    for name in public(TensorflowExecutor(a_gang(), Roles(), None, "", {}, False)) - {"form"}:  # the decorator's
        assert f"| `{name}` |" in page or f"| `{name}(" in page, name


def test_every_member_of_current_jax_is_told() -> None:
    for name in Place.__dataclass_fields__:
        assert f"| `{name}` |" in text("docs/jax.md"), name


@pytest.mark.parametrize(
    ("function", "page"),
    [
        (Gang.run, "docs/gang.md"),
        (TensorflowExecutor.run, "docs/tensorflow.md"),
        (TorchrunExecutor.run, "docs/torchrun.md"),
    ],
)
def test_every_argument_of_run_is_told(function: Any, page: str) -> None:
    for name in set(inspect.signature(function).parameters) - {"self"}:
        assert f"| `{name}` |" in text(page), name


def test_signatures_shown_in_headings_are_those_of_the_code() -> None:
    for name, shown in re.findall(r"^### `(\w+)\((.*?)\)`$", text("docs/gang.md"), re.MULTILINE):
        parameters = list(inspect.signature(getattr(Gang, name)).parameters.values())[1:]
        empty = inspect.Parameter.empty
        real = ", ".join(str(parameter.replace(annotation=empty)) for parameter in parameters)
        assert shown == real, name


def test_every_exception_is_in_the_tree() -> None:
    launchers = [
        f"launchers.{name}.exceptions" for name in ("deepspeed", "jax", "mpi", "ray", "tensorflow", "torchrun")
    ]
    for module in ("core.exceptions", "core.guard_client.link", *launchers):
        importlib.import_module(f"metaflow_extensions.gang.{module}")
    found, front = set(), [GangException]
    while front:
        kind = front.pop()
        found.add(kind.__name__)
        front += kind.__subclasses__()
    tree = blocks(ROOT / "docs" / "failures.md", "text")[0]
    for name in {*found, "GangInterrupt"}:
        assert re.search(rf"[-] {name}\b", tree), name


def test_times_are_those_of_the_code() -> None:
    page = text("docs/failures.md").split("## Times", 1)[1]
    told = {
        ("core.guard.node.task_end", "STACKS_S"): "printed and, {:g} s later, it is killed",
        ("core.guard.coordinator.root_cause", "REPORT_SETTLE_S"): "| {:g} to 1 s | The failure report waits",
        ("core.guard.node.node", "GONE_GRACE_S"): "| {:g} s | Control's guard waits",
    }
    for (module, name), sentence in told.items():
        value = getattr(importlib.import_module(f"metaflow_extensions.gang.{module}"), name)
        assert sentence.format(value) in page, name
    settings = {
        "handshake_timeout": "| {:g} s | A socket must have proved",
        "stopped_timeout": "| {:g} s | A process may be stopped",
        "body_grace": "| {:g} s, plus the above | An interrupted body",
        "report_wait": "| 0.1 to {:g} s | The failure report waits",
        "end_timeout": "| {:g} s | `end_timeout`",
        "unkillable_timeout": "| {:g} s | A process may take to be gone after SIGKILL",
        "kill_grace": "| {:g} s | Between SIGTERM and SIGKILL",
    }
    for name, sentence in settings.items():
        assert sentence.format(DEFAULTS[name]) in page, name


def test_the_page_of_settings_is_made_of_the_table() -> None:
    assert text("docs/settings.md") == settings_page.page(), "run `make docs`"


@pytest.mark.parametrize(
    "page", ["deepspeed", "gang", "horovod", "huggingface", "jax", "mpi", "ray", "tensorflow", "torchrun"]
)
def test_the_reference_is_made_of_the_docstrings_and_leaves_nothing_out(page: str) -> None:
    require_packages("griffe")
    reference = importlib.import_module("reference")
    assert text(f"docs/{page}.md") == reference.page_with_reference(page), "run `make docs`"
    made = reference.reference(page)
    decorator, called = reference.PAGES[page]
    names = set(reference.load(decorator).defaults) if decorator else set()
    for name, place in called:
        thing = reference.load(place)
        if inspect.isclass(thing):
            assert "run" not in vars(thing) or f"`{name}.run(...)`" in made
            thing = getattr(thing, "run", None)
        if callable(thing):
            names |= set(inspect.signature(thing).parameters) - {"self"}
    for name in names:
        assert f"| `{name}` |" in made, f"the docstring does not have {name}"


def test_the_changelog_has_this_version() -> None:
    version = importlib.import_module("metaflow_extensions.gang.toplevel.gang_toplevel").__version__
    assert f"## [{version}]" in text("CHANGELOG.md")
