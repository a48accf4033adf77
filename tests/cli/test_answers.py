"""What ``metaflow-gang`` says of a gang in words, and of a place that has no metadata: without a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import metaflow  # before any import of the extension
import pytest
from support.flows import flow_environment

from metaflow_extensions.gang.cli.main import main
from metaflow_extensions.gang.cli.why import in_words
from metaflow_extensions.gang.core.guard.card.snapshot import restarts
from metaflow_extensions.gang.core.guard.failure_record import Failure

COMMAND = str(Path(sys.executable).with_name("metaflow-gang"))
LIMIT = 60.0

NOT_AGAIN = "The ranks were started again once, which is all that restarts allows."
RESTARTS = [
    {"line": "restart 1 of 1: rank 1 on node 1 was killed by SIGKILL", "at": 1.0, "again": True},
    {"line": NOT_AGAIN, "at": 3.0, "again": False},
]


def failure(detail: str, **more: Any) -> dict[str, Any]:
    return Failure(1, "exit", "rank 1 exited with code 1", 2.0, detail, rank=1, exit_code=1, **more).as_data("gang1")


def told(**more: Any) -> list[str]:
    nothing = {"task": "A/1/b/2", "nodes": 2, "attempt": 0, "state": "failed", "failure": None, "phases": None}
    return in_words({**nothing, "restarts": [], "nodes_told": [], "earlier": [], **more}).splitlines()


def test_the_last_lines_are_those_of_the_failed_rank() -> None:
    detail = "\n".join(f"line {number}" for number in range(20)) + "\nValueError: " + "y" * 10_000 + "\n"
    lines = told(failure=failure(detail, exception="ValueError"))
    shown = [line.removeprefix("    | ") for line in lines if line.startswith("    | ")]
    assert shown[:7] == [f"line {number}" for number in range(13, 20)]
    assert shown[7:] == ["ValueError: " + "y" * 488]
    assert not [line for line in told(failure=failure("")) if "| " in line], "a rank that has written nothing"


def test_a_long_text_has_its_class_and_control_characters_are_shown_as_such() -> None:
    lines = told(failure=failure("x\x1b[2J\ud800\n" * 9, message="ValueError: begin xxx ..."))
    assert lines[1] == "  first failure: node 1 (gang1): rank 1 exited with code 1 (ValueError: begin xxx ...)."
    assert lines[2:10] == [r"    | x\x1b[2J\ud800"] * 8


def test_that_there_was_no_restart_any_more_is_no_restart() -> None:
    lines = told(failure=failure("", exception="KeyError"), restarts=RESTARTS)
    assert lines[1:4] == [
        f"  at 1970-01-01 00:00:01 UTC: {RESTARTS[0]['line']}",
        "  first failure: node 1 (gang1): rank 1 exited with code 1 (KeyError).",
        f"  {NOT_AGAIN}",
    ]
    card = restarts([{**entry, "detail": ""} for entry in RESTARTS])
    assert card == [{"line": RESTARTS[0]["line"], "at": 1.0}], "the card's heading says that ranks were started again"


def test_restarts_of_an_earlier_attempt_are_counted() -> None:
    earlier = [{"attempt": 0, "failure": failure(""), "restarts": RESTARTS}]
    assert told(state="succeeded", attempt=1, earlier=earlier)[-1] == (
        "  attempt 0 before it: node 1 (gang1): rank 1 exited with code 1. The ranks had been started again once."
    )


@pytest.mark.parametrize("command", ["why", "logs", "traces"])
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nonsense", "Could not find directory .metaflow in directory nonsense"),
        ("local@/nonexistent", "Could not find directory .metaflow in directory /nonexistent"),
        ("service@http://127.0.0.1:9", "Metaflow service [http://127.0.0.1:9] unreachable"),
    ],
)
def test_a_place_without_metadata_is_one_sentence(
    command: str, place: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Metaflow's client has changed to the provider before it finds that there is none at that place.
    monkeypatch.setattr(metaflow.client.core, "current_metadata", metaflow.client.core.current_metadata)
    with pytest.raises(SystemExit) as ended:
        main([command, "Told", "--metadata", place])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"metaflow-gang: --metadata {place} is no place with Metaflow's metadata: {why}. Write local@FOLDER, with the "
        "folder in which the run was started, or service@URL.\n"
    )


def test_a_configured_service_that_does_not_answer_is_one_sentence() -> None:
    env = flow_environment({"METAFLOW_DEFAULT_METADATA": "service", "METAFLOW_SERVICE_URL": "http://127.0.0.1:9"})
    done = subprocess.run([COMMAND, "why", "Told"], env=env, capture_output=True, text=True, timeout=LIMIT)
    sentence = "metaflow-gang: Metaflow's metadata (service@http://127.0.0.1:9) cannot be asked for Told: "
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(sentence), done
    assert done.stderr.count("\n") == 1, done
