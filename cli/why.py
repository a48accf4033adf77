"""``metaflow-gang why``: the first failure of each gang of a run, and how far the gang had come, in plain words."""

from __future__ import annotations

import json
import textwrap
from datetime import datetime, timezone
from typing import Any

from ..core.gang.restarts import counted_times
from ..core.guard.phases import FORMED, JOINED, OUTPUT, RANKS, seconds
from ..core.guard.tracebacks import visible
from .command import refuse
from .run_tasks import GangOfRun, NotFound, gangs_of

FAILED, SUCCEEDED, UNKNOWN = "failed", "succeeded", "not over, or ended without a word"

_REACHED = (
    (JOINED, "last", "all nodes had joined"),
    (FORMED, "last", "the body had begun"),
    (RANKS, "first", "ranks or programs were started"),
    (OUTPUT, "first", "they wrote something"),
)
"""What is printed of the phases: that of the first node that had it, or of the last."""

_WIDTH = 110


def why(pathspec: str, where: str | None, as_json: bool) -> int:
    """Print why the gangs of ``pathspec`` failed; returns the exit code, which says whether the question had an answer.

    Parameters
    ----------
    pathspec : str
    where : str, optional
        Metaflow's metadata: "local@FOLDER" or "service@URL".
    as_json : bool
    """
    try:
        gangs = gangs_of(pathspec, where)
        answers = [answer(gang) for gang in gangs]
        told = [in_words(found) for found in answers]
    except NotFound as error:
        return refuse(str(error))
    print(json.dumps(answers, indent=2) if as_json else "\n\n".join(told))
    return 0


def answer(gang: GangOfRun) -> dict[str, Any]:
    """What is known of one gang's attempts, the latest in full."""
    attempts = gang.attempts
    latest = attempts - 1
    failures = [gang.failure(attempt) for attempt in range(attempts)]
    ended = gang.has_ended(latest)
    return {
        "task": gang.pathspec,
        "nodes": len(gang.tasks),
        "attempt": latest,
        "state": FAILED if failures[-1] or ended is False else SUCCEEDED if ended else UNKNOWN,
        "failure": failures[-1],
        "phases": gang.phases(latest),
        "restarts": gang.restarts(latest),
        "nodes_told": gang.nodes_told(latest),
        "earlier": [
            {"attempt": number, "failure": failure, "restarts": gang.restarts(number)}
            for number, failure in enumerate(failures[:-1])
        ],
    }


def in_words(found: dict[str, Any]) -> str:
    """An answer for people."""
    nodes = f"{found['nodes']} node{'s' if found['nodes'] > 1 else ''}"
    lines = [f"{found['task']}, attempt {found['attempt']}: the gang of {nodes} {_state(found['state'])}."]
    failure = found["failure"]
    lines += [f"  at {_moment(entry['at'])}: {entry['line']}" for entry in found["restarts"] if entry["again"]]
    lines += _told(found["nodes_told"])
    if failure:
        lines.append(f"  first failure: {_cause(failure)}.")
        if failure["rank"] is not None:  # what a step's body raised is in the sentence itself
            lines += [f"    | {visible(line)}" for line in failure["last_lines"]]
        lines += [f"  {entry['line']}" for entry in found["restarts"] if not entry["again"]]
        lines += _when(failure, found["phases"])
        lines.append(f"  log: metaflow-gang logs {found['task']} {_selection(failure)}")
    elif found["state"] == FAILED:
        lines.append("  It has left no failure report: every process of it may have been killed at once. See its log,")
        lines.append(f"  metaflow-gang logs {found['task']}, and what the backend says of its job.")
    for earlier in found["earlier"]:
        cause = earlier["failure"]
        said = _cause(cause) if cause else "it has left no failure report"
        again = sum(1 for entry in earlier["restarts"] if entry["again"])
        more = f" The ranks had been started again {counted_times(again)}." if again else ""
        lines.append(f"  attempt {earlier['attempt']} before it: {said}.{more}")
    return "\n".join(lines)


def _told(records: list[dict[str, Any]]) -> list[str]:
    """A line for each node that was left out, was a spare one or took another place; those that wait alike have one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record["text"], _moment(record["at"])), []).append(str(record["node"]))
    return [
        f"  node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}: {text}, since {moment}"
        for (text, moment), nodes in groups.items()
    ]


def _state(state: str) -> str:
    return f"has {state}" if state in (FAILED, SUCCEEDED) else f"is {state}"


def _cause(failure: dict[str, Any]) -> str:
    where = f"node {failure['node']}" + (f" ({failure['host']})" if failure["host"] else "")
    exception = failure["exception"] or ""
    said = failure.get("message") or exception  # versions before this one have no message
    raised = f" ({said})" if exception not in failure["text"] else ""
    return f"{where}: {' '.join(map(visible, failure['text'].rstrip('.').splitlines()))}{raised}"


def _selection(failure: dict[str, Any]) -> str:
    return f"--node {failure['node']}" + (f" --rank {failure['rank']}" if failure["rank"] is not None else "")


def _moment(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _when(failure: dict[str, Any], phases: dict[str, Any] | None) -> list[str]:
    """The moment of the failure, and the phases of the gang that were reached before it."""
    lines = [f"  at {_moment(failure['time'])}"]
    if not phases:
        return lines
    since = phases["since"]
    lines[0] += f", {seconds(failure['time'] - since)} after the task had started"
    gang = phases.get("gang") or {
        name: {"first": since + value, "last": since + value} for name, value in phases["times"].items()
    }
    reached = [
        f"{words} after {seconds(gang[name][which] - since)}"
        for name, which, words in _REACHED
        if name in gang and gang[name][which] <= failure["time"]
    ]
    told = f"  before that: {', '.join(reached) or 'not all nodes had joined'}"
    return [*lines, *textwrap.wrap(told, _WIDTH, subsequent_indent=" " * 4)]
