"""METAFLOW_GANG_DEBUG: what a guard did is kept where the step fails, also of a guard or a task that was killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.flows import FlowRun, FlowRunner
from support.paths import ROOT

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.guard.debug_log import NAME, DebugLog, command
from metaflow_extensions.gang.core.settings.table import DEBUG

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

PLANTED = "planted-secret-5f1c"

FLOW = """
import os, signal
from metaflow import FlowSpec, current, gang, step

class Watched(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        gang, act = current.gang, os.environ["ACT"]
        gang.all_gather(os.environ["PLANTED"])
        if gang.node_index == 1 and act in ("guard", "both"):
            os.kill(gang._link.guard_pid, signal.SIGKILL)
        if gang.node_index == 1 and act in ("task", "both"):
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "success":
            gang.run(["true"])
        else:
            gang.run(["sh", "-c", "kill -9 $$"] if gang.node_index == 1 else ["sleep", "1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Watched()
"""


def run(flow_run: FlowRunner, tmp_path: Path, act: str, debug: str | None = "1") -> FlowRun:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"ACT": act, "METAFLOW_GANG_DEBUG": debug, "PLANTED": PLANTED, "TMPDIR": str(temporary)}
    return flow_run(FLOW, env={**env, "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path)})


def stored(flow: FlowRun) -> dict[int, str]:
    """The logs in the datastore, by node."""
    paths = flow.folder.parent.glob(".metaflow/Watched/*/work/*/0.gang_debug.log")
    found = {int(path.parent.name.partition("_node_")[2] or 0): path for path in paths}
    for path in found.values():
        assert flow.output.count(f"is stored in {path} (METAFLOW_GANG_DEBUG). Read it with: cat {path}") == 1
    return {node: path.read_text() for node, path in sorted(found.items())}


def alike(text: str) -> str:
    """A line without what differs from run to run."""
    text = re.sub(r" on \S+, started", " started", re.sub(r" host='[^']*'", " host", text))
    return re.sub(r"\d+", "#", re.sub(r"\b[0-9a-f]{16}\b", "ID", text))


def test_a_killed_rank(flow_run: FlowRunner, tmp_path: Path) -> None:
    flow = run(flow_run, tmp_path, "rank")
    output = flow.fails(RUN_S)
    logs = stored(flow)
    assert list(logs) == [0, 1], output
    for node, log in logs.items():
        folder = rf"{tmp_path}/tmp/metaflow-gang-\d+/gangs/[0-9a-f]{{16}}-{node}-\w+"
        assert re.search(
            rf"\[gang\] The debug log of node {node}'s guard is {folder}/debug\.log \(METAFLOW_GANG", output
        )
        head, *lines = log.splitlines()
        assert re.match(rf"guard \d+ of node {node} of gang [0-9a-f]{{16}}, task \d+, on \S+, started at 20\d\d-", head)
        times = [float(line.split()[0]) for line in lines]
        assert times == sorted(times) and 0 < times[0] < times[-1] < RUN_S
        for what in (
            r"request \d+: gather seq=0 kind='all_gather",
            r"reply \d+ \(gather\)",
            r"to the hub: gather seq=0 ",
            r"from the hub: gathered seq=0 ",
            r"state: forming -> running \(all_joined\)",
            r"state: running -> stopping \(stop\)",
            (r"sh" if node else "sleep") + r" of launch \S+ started, pid \d+: (sh -c kill -9 \$\$|sleep 1000)",
            rf"pid \d+ ended, signal {9 if node else 15}",
            r"request \d+: " + ("fail" if node else "unwound"),
        ):
            assert re.search(rf"(?m)^\d+\.\d{{6}} {what}", log), f"{what}\n{log}"
        # Neither what the user's values and environment hold, nor the gang's own secret, which has 64 digits.
        assert PLANTED not in log and not re.search(r"[0-9a-f]{64}", log)
    # Node 0 has what the hub got from node 1, and both the one who failed.
    assert re.search(r"(?m)^\S+ link to node 1 at 127\.0\.0\.1 opened$", logs[0])
    for log, who in ((logs[0], "from node 1"), (logs[1], "to the hub")):
        assert re.search(rf"(?m)^\S+ {who}: fail failure: node=1 kind='signal' .*text='sh was killed by SIGKILL", log)
    assert not list((tmp_path / "tmp").rglob(NAME))
    _compare_with_the_page(logs[1])


def _compare_with_the_page(log: str) -> None:
    """The lines of the example in docs/debugging.md are those of node 1, in this order; it may leave some out."""
    page = (Path(ROOT) / "docs" / "debugging.md").read_text()
    example = page.partition("```text\n")[2].partition("```")[0].splitlines()
    assert len(example) > 10
    lines = iter(map(alike, log.splitlines()))
    for shown in example:
        assert alike(shown) in lines, f"{shown}\n{log}"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["guard", "task", "both"])
def test_a_killed_guard_or_task(flow_run: FlowRunner, tmp_path: Path, victim: str) -> None:
    flow = run(flow_run, tmp_path, victim)
    flow.fails(RUN_S)
    logs = stored(flow)
    assert list(logs) == [0, 1], flow.dump()
    last = r"to the hub: fail .* text=.the node's task was killed" if victim == "task" else r"reply \d+ \(gather\)"
    assert re.search(rf"(?m)^\S+ {last}", logs[1]), logs[1]
    assert not list((tmp_path / "tmp").rglob(NAME))


@pytest.mark.slow
@pytest.mark.parametrize("act, debug", [("success", "1"), ("rank", None), ("rank", "0")])
def test_a_success_keeps_none_and_off_means_none(
    flow_run: FlowRunner, tmp_path: Path, act: str, debug: str | None
) -> None:
    flow = run(flow_run, tmp_path, act, debug)
    assert (flow.wait(RUN_S) == 0) == (act == "success"), flow.dump()
    assert stored(flow) == {} and not list((tmp_path / "tmp").rglob(NAME))
    assert flow.output.count("The debug log of node") == (2 if debug == "1" else 0), flow.output


def test_it_costs_no_import_where_it_is_off() -> None:
    folder = Path(str(sys.modules[DebugLog.__module__].__file__)).parents[1]
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import guard.node.node; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "guard.node.node" in modules and "guard.debug_log" not in modules


def log_in(folder: Path, limit: int) -> DebugLog:
    identity = SimpleNamespace(folder=str(folder), index=1, gang_id="ab", task_pid=7, started_at=0.0)
    return DebugLog(identity, limit)


def test_a_log_ends_at_its_limit(tmp_path: Path) -> None:
    log = log_in(tmp_path, 4096)
    before = set(os.listdir("/proc/self/fd"))
    for number in range(1000):
        log.write(f"request {number}:", {"op": "gather", "text": "x" * 50})
    text = (tmp_path / NAME).read_text()
    *lines, last = text.splitlines()
    assert last == "the log ends here: it has reached its limit of 4096 bytes"
    assert len(text) - len(last) - 1 <= 4096 < len(text) + 100
    assert lines[-1].endswith(f"gather text='{'x' * 50}'"), "a line is whole, or not there"
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0


def test_a_line_has_what_is_known_to_be_harmless(tmp_path: Path) -> None:
    log = log_in(tmp_path, 1 << 20)
    header = {
        "op": "join",
        "secret": PLANTED,
        "info": {"offer": PLANTED},
        "plan": {"env": {"TOKEN": PLANTED}},
        "entry": PLANTED,
        "detail": PLANTED,
        "port": 4000,
        "failure": {"node": 1, "text": "two\nlines " + "x" * 1000, "detail": PLANTED},
    }
    log.write("request 3:", header, PLANTED.encode())
    log.write("from node 1:", {"op": "ping"})
    log.started("rank 1", 12, ["python", "-c", "print(1)\n" * 100, *map(str, range(20))])
    log.started("rank 2", -1, ["nothing"])
    _, _, *lines = (tmp_path / NAME).read_text().splitlines()
    bare = [line.partition(" ")[2] for line in lines]
    shown = "two\\nlines " + "x" * 150
    assert bare[0] == f"request 3: join port=4000 failure: node=1 text='{shown}...' +{len(PLANTED)} bytes"
    assert bare[1].startswith("rank 1 started, pid 12: python -c print(1)\\nprint(1)") and bare[1].endswith(
        " ... 15 more"
    )
    assert bare[2:] == ["rank 2 could not be started: nothing"]
    assert len(bare[1]) < 200 and PLANTED not in "".join(lines)
    assert command(["a", "b"]) == "a b"


def test_a_folder_that_has_no_room(tmp_path: Path) -> None:
    log_in(tmp_path / "gone", 100).write("nothing is raised")


@pytest.mark.parametrize("value, is_on", [("1", True), ("true", True), ("0", False), ("", False), ("off", False)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, value: str, is_on: bool) -> None:
    monkeypatch.setenv("METAFLOW_GANG_DEBUG", value)
    assert DEBUG.read() is is_on
    monkeypatch.setenv("METAFLOW_GANG_DEBUG", "perhaps")
    with pytest.raises(BadAttribute) as raised:
        DEBUG.read()
    bounds = "1 for on (or true, yes, on), or 0 for off (or false, no, off)"
    assert str(raised.value) == f"METAFLOW_GANG_DEBUG=perhaps: it is {bounds}."
