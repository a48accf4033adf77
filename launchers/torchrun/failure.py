"""What a failed rank, or torchrun's agent, tells of itself, as an exception for the step."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...core.failure import GangException, ProcessFailed, ToolMissing
from ...core.functions import error_text, load_error, read_error
from ...core.guard.verdict import how_it_ended, indent, last_lines, last_traceback
from .peer_lost import AGENT_REPORT

# The first line of the agent's own log, written when it noticed the failure.
_AGENT_LINE = re.compile(r"^[EWI]\d{4} [^\n]*torch/distributed/elastic/", re.MULTILINE)


class TorchrunException(GangException):
    """A rank, or torchrun itself, has failed; the message says which, how, and shows its traceback or last output."""

    headline = "@torchrun"


class TorchNotInstalledException(TorchrunException, ToolMissing):
    """There is no torch where the ranks would run."""

    headline = "@torchrun: PyTorch is missing"


@dataclass(frozen=True)
class AgentFailure:
    """The rank that failed first, as torchrun's agent saw it.

    ``exit_code`` is negative for a signal; ``text`` the rank's traceback or last lines; ``recorded`` whether the
    agent's error file is about this rank.
    """

    rank: int
    exit_code: int
    text: str
    recorded: bool


def agent_failure(tail: str, error_file: str | None) -> AgentFailure | None:
    """Reads the end of an agent's output, and its error file.

    Returns
    -------
    AgentFailure or None
        None where the agent itself failed, before any rank did.
    """
    found = re.search(AGENT_REPORT, tail)
    if found is None:
        return None
    rank, exit_code = int(found["rank"]), int(found["exit_code"])
    root = re.search(r"Root Cause \(first observed failure\):\n[\s\S]*?rank +: (\d+) ", tail)
    recorded = root is not None and int(root[1]) == rank
    text = error_text(read_error(error_file)) if recorded else ""
    return AgentFailure(rank, exit_code, text or _said_by(rank, tail), recorded)


def _said_by(rank: int, tail: str) -> str:
    """The rank's traceback, by the number that torch puts before its lines, else what came before the agent spoke.

    Lines that bear the number of another rank are left out: what they say happened to that one.
    """
    prefix = f"[rank{rank}]: "
    own = "\n".join(line.removeprefix(prefix) for line in tail.splitlines() if line.startswith(prefix))
    if last_traceback(own):
        return last_traceback(own)
    agent = _AGENT_LINE.search(tail)
    before = tail[: agent.start()] if agent else tail
    others = re.compile(rf"\[rank(?!{rank}\])\d+\]: ")
    return last_lines("\n".join(line for line in before.splitlines() if not others.match(line)))


def explain(failure: ProcessFailed, what: str, where: str, by_agent: bool) -> Exception:
    """The exception for the step: the rank's own where a function raised it, else one that tells rank, end and output.

    Parameters
    ----------
    what : str
        What was running: "train.py", "train()".
    where : str
        "node 1", or "this machine".
    by_agent : bool
        Whether the process that failed was torchrun's agent, whose output and error file may be about several ranks.
    """
    told = agent_failure(failure.tail, failure.error_file) if by_agent else None
    if told is not None:
        title, ended, detail = f"rank {told.rank}", how_it_ended(told.exit_code), told.text
    else:
        title, ended = failure.title, failure.ended
        detail = "" if by_agent else failure.traceback
        detail = detail or error_text(read_error(failure.error_file)) or last_lines(failure.tail)
    if told is None or told.recorded:
        error = load_error(failure.error_file, f"{title} on {where}")
        if error is not None:
            return error
    shown = f":\n{indent(detail)}" if detail.strip() else ", and printed nothing."
    return TorchrunException(f"{title} on {where}, running {what}, {ended}{shown}")
