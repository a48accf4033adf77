"""What the nodes compare before the body begins, on hosts that differ: software, shared memory, disk, GPUs, limits."""

from __future__ import annotations

import re
import time
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.flows import FlowRunner
from support.frameworks.packages import distribution
from support.remote import START_S, all_fail, remote_gang
from support.requirements import require_packages

from metaflow_extensions.gang import core
from metaflow_extensions.gang.core.preflight.facts import MOST, Facts, facts_of, own_facts
from metaflow_extensions.gang.core.preflight.report import named, warnings_of
from metaflow_extensions.gang.core.preflight.unfit import unfit_nodes
from metaflow_extensions.gang.core.version import VERSION

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os, resource
from metaflow import FlowSpec, current, resources, step, torchrun

if os.environ.get("FILES"):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ["FILES"]), limits[1]))

class Checked(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(gpu=int(os.environ.get("GPUS", "0")))
    @torchrun(nproc_per_node=2, preflight=os.environ.get("LEVEL"))
    @step
    def work(self):
        print(f"the body runs on node {current.gang.node_index}", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Checked()
"""


@pytest.mark.slow
def test_differences_and_what_lacks_are_told_once_on_node_0(tmp_path: Path) -> None:
    require_packages("torch")
    with remote_gang(tmp_path, FLOW, 3) as gang:
        other = distribution(tmp_path / "other", "torch", "1.2.3")
        distribution(tmp_path / "other", "nvidia-nccl-cu12", "2.1.0")
        gang.hosts[1].run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"])
        gang.hosts[2].run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", "/mnt"])
        env = {"GPUS": "2"}
        tasks = [
            gang.start(0, **env),
            gang.start(1, PYTHONPATH=other, **env),
            gang.start(2, TMPDIR="/mnt", FILES="600", **env),
        ]
        said, *others = [task.ok() for task in tasks]
    assert re.search(r"^\[gang\] {3}\s+nodes 0 and 2\s+node 1$", said, re.MULTILINE), said
    assert re.search(r"^\[gang\] {3}torch\s+\S+\s+1\.2\.3$", said, re.MULTILINE), said
    assert re.search(r"^\[gang\] {3}nvidia-nccl-cu12\s+none\s+2\.1\.0$", said, re.MULTILINE), said
    assert "Python " not in said, "which is the same everywhere"
    assert "on nodes 0 to 2, 0 of the 2 GPUs that the step asks for can be used. " in said
    assert "Preflight: on node 1, /dev/shm has 64 MiB for 2 ranks. NCCL" in said
    assert re.search(r"Preflight: on node 2, the folder for temporary files has \d+ MiB left\. Make room", said)
    assert "Preflight: on node 2, a process may open 600 files. Raise the limit to at least 1024 (ulimit -n" in said
    assert said.count("Preflight: ") == 5, said
    for output in (said, *others):
        assert "the body runs on node " in output
    assert "Preflight" not in "".join(others)


@pytest.mark.slow
def test_another_version_of_this_package_ends_the_gang_before_any_body(tmp_path: Path) -> None:
    require_packages("torch")
    other = tmp_path / "version.py"
    other.write_text('VERSION = "9.9"\n')
    with remote_gang(tmp_path, FLOW, 2) as gang:
        installed = Path(str(core.__file__)).parent
        gang.hosts[1].run(["mount", "--bind", str(other), str(installed / "version.py")])
        tasks = gang.start_all()
        for output in all_fail(tasks, time.monotonic(), START_S, "another version"):
            told = f"node 1 (gang1): has metaflow-gang 9.9, and node 0 has {VERSION}: all nodes need the same version"
            assert told in output, output
            assert "the body runs" not in output
        tasks = gang.start_all(attempt=1, LEVEL="false")
        for task in tasks:
            assert "the body runs" in task.ok()


def test_a_gang_without_faults_says_nothing_and_false_asks_nothing(flow_run: FlowRunner) -> None:
    require_packages("torch")
    small = {"NODES": "2", "PYTHONPATH": None}
    assert "Preflight" not in flow_run(FLOW, env=small).ok(RUN_S).output
    output = flow_run(FLOW, env={**small, "FILES": "700", "LEVEL": "False"}).ok(RUN_S).output
    assert "Preflight" not in output
    output = flow_run(FLOW, env={**small, "FILES": "700", "METAFLOW_GANG_PREFLIGHT": "0"}).ok(RUN_S).output
    assert "Preflight" not in output
    output = flow_run(FLOW, env={**small, "FILES": "700"}).ok(RUN_S).output
    assert output.count("Preflight: on nodes 0 and 1, a process may open 700 files.") == 1
    said = flow_run(FLOW, env={**small, "LEVEL": "most"}).fails(RUN_S)
    assert "@torchrun(preflight='most'): preflight is True, False or \"full\"." in said


def facts(**changed: object) -> Facts:
    return Facts(
        **{"versions": {"Python": "3.11.4"}, "gpus": 0, "ranks": 1, "shm": 1 << 30, "room": -1, "files": -1, **changed}
    )  # type: ignore[arg-type]


def test_facts_are_read_as_they_were_sent_and_nothing_else_is() -> None:
    own = own_facts(["pytest", "no-such-package"], gpus=3, ranks=4)
    assert own.versions["pytest"] == pytest.__version__ and "no-such-package" not in own.versions
    assert facts_of(own.as_text()) == own
    assert len(own.as_text()) <= MOST
    too_much = facts(versions={f"package {number}": "1" * 60 for number in range(40)})
    assert too_much.as_text() == ""
    for text in (None, "", "[]", "{}", own.as_text().replace('"gpus":3', '"gpus":"3"'), own.as_text()[:-2]):
        assert facts_of(text) is None


def test_own_facts_take_no_measurable_time() -> None:
    own_facts(["torch"], gpus=0, ranks=1)
    begun = time.perf_counter()
    for _ in range(10):
        own_facts(["torch"], gpus=0, ranks=1)
    each = (time.perf_counter() - begun) / 10
    print(f"own_facts takes {each * 1000:.1f} ms")
    assert each < 0.05


def test_the_driver_and_nccl_are_told_where_there_are_gpus(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12\n"
    )
    assert own_facts([], gpus=1, ranks=1, proc=str(tmp_path)).versions["NVIDIA driver"] == "550.54.15"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release\n")
    assert own_facts([], gpus=1, ranks=1, proc=str(tmp_path)).versions["NVIDIA driver"] == "560.35.03"
    assert "NVIDIA driver" not in own_facts([], gpus=1, ranks=1, proc=str(tmp_path / "none")).versions


def test_a_table_of_many_kinds_has_the_most_frequent_ones() -> None:
    many = {node: facts(versions={"Python": f"3.{node // 10}"}) for node in range(73)}
    lines = warnings_of(many, None, local=False)
    assert lines[1].split("  ") != [] and "nodes 0 to 9" in lines[1] and "nodes 40 to 49" in lines[1]
    assert lines[3] == "  ... and nodes 50 to 72 have still others"
    assert warnings_of({node: facts(gpus=8) for node in range(9)}, 8, local=False) == []
    assert warnings_of({0: facts()}, 8, local=True) == [], "a local gang has a notice of its own"


SMALL = {"ranks": 2, "shm": 64 << 20}
OTHER = {"versions": {"Python": "3.12.1"}}


@pytest.mark.parametrize(
    ("nodes", "most", "left_out"),
    [
        ([{}, {}, {}], 2, {}),
        ([{}, {"gpus": 0}, {}], 1, {1: "0 of the 8 GPUs that the step asks for can be used"}),
        ([{}, SMALL, {}], 1, {1: "/dev/shm has 64 MiB for 2 ranks"}),
        ([{}, {}, OTHER], 1, {2: "it has Python 3.12.1, and node 0 has 3.11.4"}),
        ([{}, {}, {"versions": {}}], 1, {2: "it has no Python, and node 0 has 3.11.4"}),
        ([{}, {}, {"versions": {"Python": "3.11.4", "NVIDIA driver": "550.54"}}], 1, {}),
        ([{}, OTHER], 1, {}),  # no majority has what node 0 has
        ([OTHER, {}, {}], 2, {}),  # node 0 has what most have not
        ([SMALL, SMALL, {}], 2, {}),  # node 0 is not better
        ([{"gpus": 4}, {"gpus": 0}, {}], 2, {}),
        ([{}, OTHER, OTHER, {}, {}], 1, {}),  # more than can be left out
        ([{}, {"gpus": 0, **OTHER}, {}], 1, {1: "0 of the 8 GPUs that the step asks for can be used"}),
        ([{}, {"gpus": 0}, OTHER, {}, SMALL], 2, {1: "0 of the 8", 2: "it has Python"}),
        ([{}, {"gpus": 0}], 0, {}),
    ],
)
def test_what_node_0_and_most_do_not_have_is_a_reason_to_leave_a_node_out(
    nodes: list[dict[str, object]], most: int, left_out: dict[int, str]
) -> None:
    known = {node: facts(**{"gpus": 8, **one}) for node, one in enumerate(nodes)}
    found = unfit_nodes(known, 8, False, most)
    assert found.keys() == left_out.keys()
    for node, why in left_out.items():
        assert found[node].startswith(f"its preflight failed: {why}"), found


def test_nothing_is_a_reason_where_facts_are_not_known_and_gpus_are_none_in_a_local_gang() -> None:
    assert unfit_nodes({}, 8, False, 3) == {}
    assert unfit_nodes({1: facts(gpus=0), 2: facts(gpus=8)}, 8, False, 3) == {}, "node 0 has told nothing"
    assert unfit_nodes({0: facts(gpus=8), 1: facts(gpus=0)}, 8, True, 3) == {}


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([3], "node 3"),
        ([0, 1], "nodes 0 and 1"),
        ([0, 1, 2], "nodes 0 to 2"),
        ([0, 2, 3, 4, 9], "nodes 0, 2 to 4 and 9"),
        ([*range(0, 80, 2)], "nodes " + ", ".join(map(str, range(0, 32, 2))) + " and more"),
    ],
)
def test_nodes_are_named_in_ranges(nodes: list[int], text: str) -> None:
    assert named(nodes) == text
