"""What torch prints when something fails, and what we make of it. The samples are output of torch 2.13 over gloo."""

from __future__ import annotations

import base64
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.guard.launches import process, run_launch
from support.paths import TESTS

from metaflow_extensions.gang.core.exceptions import GangException, ProcessFailed, ToolMissing
from metaflow_extensions.gang.core.guard.children.child import Child
from metaflow_extensions.gang.core.guard.failure_record import EVIDENCE, PEER
from metaflow_extensions.gang.core.guard.rank_reports.reports import Report, Reports, chosen
from metaflow_extensions.gang.core.ranks.functions import RankTraceback
from metaflow_extensions.gang.core.ranks.peer_lost import RANK_PEER_LOST
from metaflow_extensions.gang.launchers.torchrun.agent_report import AGENT_REPORT
from metaflow_extensions.gang.launchers.torchrun.exceptions import (
    TorchNotInstalledException,
    TorchrunException,
    explain,
)

SAMPLES = TESTS / "samples" / "torchrun"


def sample(name: str) -> str:
    return (SAMPLES / f"{name}.txt").read_text(encoding="utf-8")


def names(pattern: str) -> list[str]:
    found = sorted(path.stem for path in SAMPLES.glob(f"{pattern}.txt"))
    assert found
    return found


def matches(patterns: tuple[str, ...], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)


@pytest.mark.parametrize("name", names("peer_*"))
def test_a_rank_that_lost_its_peer_says_so(name: str) -> None:
    assert matches(RANK_PEER_LOST, sample(name))


@pytest.mark.parametrize("name", ["own_exception", "port_taken"])
def test_a_rank_with_an_error_of_its_own_has_lost_nobody(name: str) -> None:
    assert not matches(RANK_PEER_LOST, sample(name))


@pytest.mark.parametrize(
    "line",
    [
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "requests.exceptions.ConnectionError: Connection closed by peer",
        "TimeoutError: Timed out waiting 4000ms for the data loader",
        "RuntimeError: [Rank 0] CUDA out of memory",
    ],
)
def test_errors_of_other_libraries_are_not_taken_for_a_lost_peer(line: str) -> None:
    assert not matches(RANK_PEER_LOST, f"Traceback (most recent call last):\n  File x\n{line}\n")


def test_nccls_words_as_its_users_report_them() -> None:
    text = (
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a "
        "network error, NCCL version 2.26.2\nncclRemoteError: A call failed possibly due to a network error or a "
        "remote process exiting prematurely.\n"
    )
    assert all(matches(RANK_PEER_LOST, line) for line in text.splitlines())
    assert not matches(RANK_PEER_LOST, "DistBackendError: NCCL error in: x.cpp:1, invalid usage, NCCL version 2.26.2")


WATCHDOG = """\
[rank1]:[E626 06:24:44.903881913 ProcessGroupNCCL.cpp:616] [Rank 1] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum=808, OpType=ALLREDUCE, NumelIn=98, NumelOut=98, Timeout(ms)=600000) ran for 600020 milliseconds before \
timing out.
terminate called after throwing an instance of 'c10::DistBackendError'
"""
"""Of torch 2.6, as a user reports it (BasicSR's issue 737), the numbers of elements shortened."""


def test_nccls_watchdog_complains_about_a_peer_as_gloos_timeout_does(tmp_path: Path) -> None:
    older = (
        "[E ProcessGroupNCCL.cpp:458] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=96120, "
    )
    assert matches(RANK_PEER_LOST, WATCHDOG) and matches(RANK_PEER_LOST, older)
    own = "[Rank 0] Process group watchdog thread terminated with exception: CUDA error: an illegal memory access"
    assert not matches(RANK_PEER_LOST, own)
    for rank, order in ((1, PEER), (2, EVIDENCE)):
        summary = (
            f"Root Cause (first observed failure):\n[0]:\n  rank      : {rank} (local_rank: 1)\n"
            "  exitcode  : -6 (pid: 7) \n"
        )
        (tmp_path / "said").write_text(WATCHDOG + summary)
        assert ended_with(tmp_path / "said", None).failure(0).order == order


def told(text: str) -> Report | None:
    """What the guard keeps of an agent's output, one line at a time."""
    reports = Reports(re.compile(AGENT_REPORT.encode(), re.DOTALL))
    stream = reports.stream()
    for line in text.splitlines(keepends=True):
        stream.write(line.encode())
    return chosen(reports.seen(), lambda report: False)


def ended(name: str, folder: Path) -> Child:
    """An agent that has written what the sample has, and left the error file beside it."""
    recorded = SAMPLES / f"{name}.json"
    error_file = folder / "error.json"
    if recorded.exists():
        shutil.copy(recorded, error_file)
    return ended_with(SAMPLES / f"{name}.txt", str(error_file))


def ended_with(said: Path, error_file: str | None) -> Child:
    """An agent that has written what is in the file ``said``."""
    agent = process("sh", "-c", 'cat "$0" >&2; exit 1', str(said), title="torchrun")
    agent.update(report=AGENT_REPORT, error_file=error_file)
    failed = run_launch(agent, peer_lost=RANK_PEER_LOST).failed
    assert failed is not None
    return failed


@pytest.mark.parametrize(
    "name", [name for name in names("agent_*") if name not in ("agent_port_taken", "agent_own_usage")]
)
def test_an_agent_has_lost_a_peer_where_the_rank_that_it_blames_has(name: str, tmp_path: Path) -> None:
    assert (ended(name, tmp_path).failure(0).order == PEER) == name.startswith("agent_peer")


@pytest.mark.parametrize("name", ["agent_own_recorded_beside_peer", "agent_peer_recorded"])
def test_an_agents_error_file_tells_the_same(name: str) -> None:
    record = json.loads((SAMPLES / f"{name}.json").read_text())
    text = record["message"]["extraInfo"]["py_callstack"]
    assert matches(RANK_PEER_LOST, text) == name.startswith("agent_peer")


@pytest.mark.parametrize(
    ("name", "rank", "exit_code", "end"),
    [
        ("agent_own_sigkill", 1, -9, ""),
        ("agent_own_sigkill_beside_peer", 1, -9, ""),
        ("agent_own_unrecorded", 1, 1, "ValueError: loss is nan"),
        ("agent_own_recorded_beside_peer", 1, 1, "ValueError: loss is nan\n"),
        ("agent_peer_recorded", 2, 1, "GLHF! 🏖️\n"),
        ("agent_peer_unrecorded", 0, 1, "GLHF! 🏖️"),
    ],
)
def test_the_agents_summary_tells_which_rank_failed(
    name: str, rank: int, exit_code: int, end: str, tmp_path: Path
) -> None:
    record = ended(name, tmp_path).result()
    assert (record["rank"], record["exit_code"]) == (rank, exit_code)
    detail = record["detail"]
    assert detail.endswith(end)
    assert "Connection closed by peer" not in detail or "peer" in name.split("_")[1]
    if exit_code == 1:
        assert detail.startswith("Traceback (most recent call last):")


def test_a_signal_counts_more_than_what_the_agent_observed_first() -> None:
    # Both ended between two looks of the agent, which then blames the lower rank.
    summary = (
        "\nFailures:\n[1]:\n  time      : t\n  host      : h\n  rank      : 3 (local_rank: 1)\n"
        "  exitcode  : -11 (pid: 8)  (SIGSEGV)\n  error_file: <N/A>\n  traceback : x\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  time      : t\n  host      : h\n"
        "  rank      : 2 (local_rank: 0)\n"
        "  exitcode  : 1 (pid: 7) \n  error_file: <N/A>\n  traceback : x\n===\n"
    )
    found = told(summary)
    assert found is not None and (found.rank, found.exit_code, found.is_first) == (3, -11, False)
    ended_by_agent = told(summary.replace("-11 (pid: 8)  (SIGSEGV)", "-15 (pid: 8)  (SIGTERM)"))
    assert ended_by_agent is not None and (ended_by_agent.rank, ended_by_agent.is_first) == (2, True)


def test_a_killed_rank_counts_more_than_one_that_lost_it_and_was_ended_on_its_way_out(tmp_path: Path) -> None:
    # Rank 2 had written what it raised before rank 3's wrapper recorded the kill, and was still ending then.
    summary = (
        "\nFailures:\n[1]:\n  rank      : 3 (local_rank: 1)\n  exitcode  : -9 (pid: 8)  (SIGKILL)\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  rank      : 2 (local_rank: 0)\n"
        "  exitcode  : -15 (pid: 7)  (SIGTERM)\n===\n"
    )
    happens = 'cp "$2" 2.json; sleep 0.05; printf "%s" -9 > 3.json.exit; sleep 0.05; printf "%s" "$1"; exit 1'
    recorded = str(SAMPLES / "agent_peer_recorded.json")
    agent = process("sh", "-c", f'cd "$0"; {happens}', str(tmp_path), summary, recorded, title="torchrun")
    agent.update(report=AGENT_REPORT, error_file=str(tmp_path / "{rank}.json"), records_exceptions=True)
    agent["leaves_ends"] = True
    failed = run_launch(agent, peer_lost=RANK_PEER_LOST).failed
    assert failed is not None
    failure = failed.failure(1)
    assert (failure.rank, failure.exit_code, failure.order) == (3, -9, EVIDENCE)


@pytest.mark.parametrize("name", ["agent_port_taken", "agent_own_usage"])
def test_an_agent_that_fails_itself_blames_no_rank(name: str) -> None:
    assert told(sample(name)) is None


def test_an_agent_that_refuses_an_option_is_not_said_to_have_left_without_an_exception() -> None:
    agent = process("sh", "-c", 'cat "$0" >&2; exit 2', str(SAMPLES / "agent_own_usage.txt"), title="torchrun")
    agent.update(report=AGENT_REPORT, records_exceptions=True)  # of its ranks, not of itself
    failed = run_launch(agent).failed
    assert failed is not None and failed.result()["ended"] == "exited with code 2"


def failed(**changes: Any) -> ProcessFailed:
    record = {"title": "rank 3", "rank": 3, "exit_code": 1, "tail": "", "traceback": "", "error_file": None}
    return ProcessFailed({**record, **changes})


def test_what_a_failure_tells_of_a_script() -> None:
    killed = explain(failed(exit_code=-9, tail="step 1\nstep 2\n"), "train.py", "node 1")
    assert isinstance(killed, TorchrunException) and isinstance(killed, GangException)
    assert str(killed) == (
        "rank 3 on node 1, running train.py, was killed by SIGKILL (out of memory?):\n  | step 1\n  | step 2"
    )
    left = explain(failed(exit_code=7), "train.py", "node 1")
    assert str(left) == "rank 3 on node 1, running train.py, exited with code 7, and printed nothing."
    raised = explain(failed(tail="noise\n", traceback="Traceback\nValueError: x\n"), "train.py", "node 1")
    assert str(raised).endswith("exited with code 1:\n  | Traceback\n  | ValueError: x")


def test_what_a_failure_tells_under_the_agent(tmp_path: Path) -> None:
    # The guard has read the summary as well, and says which rank it was.
    killed = explain(ProcessFailed(ended("agent_own_sigkill_beside_peer", tmp_path).result()), "rank.py", "node 0")
    assert str(killed).startswith("rank 1 on node 0, running rank.py, was killed by SIGKILL (out of memory?)")
    assert "Connection reset" not in str(killed) and "Traceback" not in str(killed)
    usage = explain(
        failed(title="torchrun", rank=None, exit_code=2, tail=sample("agent_own_usage")),
        "rank.py",
        "node 0",
    )
    assert str(usage).startswith("torchrun on node 0, running rank.py, exited with code 2:")
    assert str(usage).endswith("run.py: error: unrecognized arguments: --nonsense=3")


@pytest.mark.parametrize("agent", [False, True])
def test_a_functions_own_exception_is_raised_with_the_ranks_traceback(agent: bool, tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    shutil.copy(SAMPLES / "agent_own_recorded_beside_peer.json", path)
    record = json.loads(path.read_text())
    record["gang"] = {"pickle": base64.b64encode(pickle.dumps(ValueError("loss is nan"))).decode()}
    path.write_text(json.dumps(record))
    changes = {"title": "rank 1", "rank": 1} if agent else {}
    error = explain(failed(error_file=str(path), **changes), "train()", "node 0")
    assert type(error) is ValueError and str(error) == "loss is nan"
    assert isinstance(error.__cause__, RankTraceback)
    assert f"In rank {1 if agent else 3} on node 0:\nTraceback" in str(error.__cause__)


def test_a_missing_torch_is_both_a_missing_tool_and_torchruns() -> None:
    assert issubclass(TorchNotInstalledException, ToolMissing)
    assert issubclass(TorchNotInstalledException, TorchrunException)
