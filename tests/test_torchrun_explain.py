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

from metaflow_extensions.gang.core.failure import GangException, ProcessFailed, ToolMissing
from metaflow_extensions.gang.core.functions import RankTraceback
from metaflow_extensions.gang.core.peer_lost import RANK_PEER_LOST
from metaflow_extensions.gang.launchers.torchrun.failure import (
    TorchNotInstalledException,
    TorchrunException,
    agent_failure,
    explain,
)
from metaflow_extensions.gang.launchers.torchrun.peer_lost import AGENT_PEER_LOST

SAMPLES = Path(__file__).parent / "samples" / "torchrun"


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
    assert not matches(RANK_PEER_LOST + AGENT_PEER_LOST, f"Traceback (most recent call last):\n  File x\n{line}\n")


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


def test_nccls_watchdog_complains_about_a_peer_as_gloos_timeout_does() -> None:
    older = (
        "[E ProcessGroupNCCL.cpp:458] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=96120, "
    )
    assert matches(RANK_PEER_LOST, WATCHDOG) and matches(RANK_PEER_LOST, older)
    own = "[Rank 0] Process group watchdog thread terminated with exception: CUDA error: an illegal memory access"
    assert not matches(RANK_PEER_LOST, own)
    summary = "Root Cause (first observed failure):\n[0]:\n  rank      : {} (local_rank: 1)\n"
    assert matches(AGENT_PEER_LOST, WATCHDOG + summary.format(1))
    assert not matches(AGENT_PEER_LOST, WATCHDOG + summary.format(2))


@pytest.mark.parametrize("name", names("agent_*"))
def test_an_agent_has_lost_a_peer_where_the_rank_that_it_blames_has(name: str) -> None:
    assert matches(AGENT_PEER_LOST, sample(name)) == name.startswith("agent_peer")


@pytest.mark.parametrize("name", ["agent_own_recorded_beside_peer", "agent_peer_recorded"])
def test_an_agents_error_file_tells_the_same(name: str) -> None:
    record = json.loads((SAMPLES / f"{name}.json").read_text())
    text = record["message"]["extraInfo"]["py_callstack"]
    assert matches(AGENT_PEER_LOST, text) == name.startswith("agent_peer")


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
def test_the_agents_summary_tells_which_rank_failed(name: str, rank: int, exit_code: int, end: str) -> None:
    recorded = SAMPLES / f"{name}.json"
    told = agent_failure(sample(name), str(recorded) if recorded.exists() else None)
    assert told is not None
    assert (told.rank, told.exit_code) == (rank, exit_code)
    assert told.text.endswith(end)
    assert "Connection closed by peer" not in told.text or "peer" in name.split("_")[1]
    if exit_code == 1:
        assert told.text.startswith("Traceback (most recent call last):")


def test_a_signal_counts_more_than_what_the_agent_observed_first() -> None:
    # Both ended between two looks of the agent, which then blames the lower rank.
    summary = (
        "\nFailures:\n[1]:\n  time      : t\n  host      : h\n  rank      : 3 (local_rank: 1)\n"
        "  exitcode  : -11 (pid: 8)  (SIGSEGV)\n  error_file: <N/A>\n  traceback : x\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  time      : t\n  host      : h\n"
        "  rank      : 2 (local_rank: 0)\n"
        "  exitcode  : 1 (pid: 7) \n  error_file: <N/A>\n  traceback : x\n===\n"
    )
    told = agent_failure(summary, None)
    assert told is not None and (told.rank, told.exit_code, told.recorded) == (3, -11, False)


@pytest.mark.parametrize("name", ["agent_port_taken", "agent_own_usage"])
def test_an_agent_that_fails_itself_blames_no_rank(name: str) -> None:
    assert agent_failure(sample(name), None) is None


def failed(**changes: Any) -> ProcessFailed:
    record = {"title": "rank 3", "rank": 3, "exit_code": 1, "tail": "", "traceback": "", "error_file": None}
    return ProcessFailed({**record, **changes})


def test_what_a_failure_tells_of_a_script() -> None:
    killed = explain(failed(exit_code=-9, tail="step 1\nstep 2\n"), "train.py", "node 1", by_agent=False)
    assert isinstance(killed, TorchrunException) and isinstance(killed, GangException)
    assert str(killed) == (
        "rank 3 on node 1, running train.py, was killed by SIGKILL (out of memory?):\n  | step 1\n  | step 2"
    )
    left = explain(failed(exit_code=7), "train.py", "node 1", by_agent=False)
    assert str(left) == "rank 3 on node 1, running train.py, exited with code 7, and printed nothing."
    raised = explain(
        failed(tail="noise\n", traceback="Traceback\nValueError: x\n"), "train.py", "node 1", by_agent=False
    )
    assert str(raised).endswith("exited with code 1:\n  | Traceback\n  | ValueError: x")


def test_what_a_failure_tells_under_the_agent() -> None:
    # The guard has read the summary as well, and says which rank it was.
    title = {"title": "rank 1", "rank": 1, "exit_code": -9, "traceback": "Traceback of another rank"}
    killed = explain(failed(**title, tail=sample("agent_own_sigkill_beside_peer")), "rank.py", "node 0", by_agent=True)
    assert str(killed).startswith("rank 1 on node 0, running rank.py, was killed by SIGKILL (out of memory?)")
    assert "Connection reset" not in str(killed) and "Traceback" not in str(killed)
    usage = explain(
        failed(title="torchrun", rank=None, exit_code=2, tail=sample("agent_own_usage")),
        "rank.py",
        "node 0",
        by_agent=True,
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
    changes = {"title": "torchrun", "rank": None, "tail": sample("agent_own_recorded_beside_peer")} if agent else {}
    error = explain(failed(error_file=str(path), **changes), "train()", "node 0", by_agent=agent)
    assert type(error) is ValueError and str(error) == "loss is nan"
    assert isinstance(error.__cause__, RankTraceback)
    assert f"In rank {1 if agent else 3} on node 0:\nTraceback" in str(error.__cause__)


def test_a_missing_torch_is_both_a_missing_tool_and_torchruns() -> None:
    assert issubclass(TorchNotInstalledException, ToolMissing)
    assert issubclass(TorchNotInstalledException, TorchrunException)
