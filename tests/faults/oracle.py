"""What a cell's fault has to lead to. It follows from the fault alone: nothing here looks at the code under test."""

from __future__ import annotations

import re
from dataclasses import dataclass

import acts
from cells import Cell

FIRST = re.compile(r"The first failure was on (node \d+)(?: \([^)\n]*\))?: ([^\n]*)")
TIE = "These failed within the same moment"


@dataclass(frozen=True)
class Expected:
    """``node`` is to blame in the words ``told`` on each node that is not ``silent``; None where the run ends well.

    ``own`` is what the node itself may say in its stead, since it raises its own exception.
    """

    node: int | None
    told: str
    own: str = ""
    silent: tuple[int, ...] = ()
    same: bool = True
    cause: bool = True


SIGNALS = {
    "SIGKILL": r"killed by SIGKILL",
    "SIGSEGV": r"SIGSEGV",
    "SIGABRT": r"SIGABRT",
    "SIGBUS": r"SIGBUS",
    "SIGSTOP": r"stopped \(SIGSTOP\)",
    "SIGTERM": r"SIGTERM",
    "SIGINT": r"SIGINT",
    "os.abort": r"SIGABRT",
    "segfault": r"SIGSEGV",
    "processor time exhausted": r"SIGXCPU|SIGKILL",
}

ENDS = {
    "os._exit(0)": r"code 0|os\._exit|without an exception|ended by itself|left",
    "os._exit(3)": r"code 3",
    "C exit(4)": r"code 4",
    "sys.exit(0)": r"SystemExit: 0|code 0|sys\.exit\(0\)",
    "sys.exit(1)": r"SystemExit: 1|code 1",
    "sys.exit(text)": re.escape(acts.TEXT),
    "closes its descriptors": r"descriptors|closed its end|died|connection",
    "exec of another program": r"exec|another program|died|connection",
}

EXCEPTIONS = {
    "raise": "ValueError: " + re.escape(acts.MESSAGE),
    "raise beside chatty ranks": "ValueError: " + re.escape(acts.MESSAGE),
    "recursion": "RecursionError",
    "memory exhausted": "MemoryError",
    "message of 9 MB": "ValueError: begin xxx",
    "message of 250,000 lines": "ValueError",
    "message that is no UTF-8": r"ValueError: a name \? that",
    "thread left": "ValueError: " + re.escape(acts.MESSAGE),
    "slow end hook": "ValueError: " + re.escape(acts.MESSAGE),
    "value that cannot be sent": "cannot be sent to the other nodes",
    "return early": "finished its step while",
}

DIED = r"the node's task (?:was|died|is dead|exited|ended|has)"


def expected(cell: Cell) -> Expected:
    """What the injector's fault has to lead to."""
    row = cell.row
    if row.blames == "nobody":
        return Expected(None, "")
    if row.blames == "none":
        return Expected(cell.node, "", cause=False)
    node = int(row.blames.removeprefix("node ")) if row.blames else cell.node
    told = row.told or _words(cell)
    silent, own = row.silent, ""
    who = row.who.split()[0]
    if who == "task":
        if row.what in EXCEPTIONS or row.what.startswith("sys.exit"):
            own = told  # its own exception
        else:
            silent += (node,)  # it is dead
    elif who == "guard":
        own = "guard"
    elif who in ("rank", "child", "launcher"):
        own = told
    return Expected(node, told, own, silent, same=row.place != "hosts")


def _words(cell: Cell) -> str:
    row = cell.row
    who, what = row.who, row.what
    if who.startswith("task"):
        if what in ("SIGTERM", "SIGINT", "SIGSTOP"):
            return SIGNALS[what]
        if what in EXCEPTIONS:
            return EXCEPTIONS[what]
        if cell.node == 0 or row.place == "hosts":
            # Its guard is not its parent, and sees only that it is gone.
            return rf"{DIED}|{SIGNALS.get(what, '$^')}|{ENDS.get(what, '$^')}"
        return SIGNALS.get(what) or ENDS[what]
    if who.startswith("guard"):
        return SIGNALS["SIGSTOP"] + "|silent|not answer" if what == "SIGSTOP" else r"guard|lost"
    if who == "run":
        return r"interrupted \(Ctrl-C, SIGINT\)" if what.startswith("SIGINT") else "the process of the run"
    if who.startswith(("rank", "child", "launcher")):
        return SIGNALS.get(what) or EXCEPTIONS.get(what) or ENDS[what]
    return "lost|reach|answer"


def problems(cell: Cell, code: int, logs: dict[int, str], output: str) -> list[str]:
    """What is wrong about a run's exit code and what each node told, a sentence each."""
    want = expected(cell)
    if want.node is None:
        return [] if code == 0 else [f"the run ended with {code}, and has to end well"]
    if cell.row.who == "run" and cell.row.what == "SIGKILL":
        found = [] if code == -9 else [f"the run ended with {code}, and was killed"]
    else:
        found = [] if code > 0 else [f"the run ended with {code}, and has to fail"]
    if not want.cause:
        return found
    stories: dict[int, str] = {}
    for node in range(cell.nodes):
        if node in want.silent:
            continue
        text = logs.get(node, "")
        stories_here = FIRST.findall(text)
        if stories_here:
            where, told = stories_here[-1]
            at = text.rfind(f"The first failure was on {where}")
            whole = text[at : at + 20_000]
            stories[node] = f"{where}: {told}"
            if where != f"node {want.node}":
                found.append(f"node {node} blames {where} ({told}), and it was node {want.node}")
            elif not re.search(want.told, whole):
                found.append(f"node {node} does not tell the cause /{want.told}/: {told}")
            elif cell.row.who.startswith("rank") and f"{cell.row.who} " not in told + " ":
                found.append(f"node {node} does not name {cell.row.who}: {told}")
        elif node == want.node and want.own and re.search(want.own, text):
            continue
        elif TIE in text:
            found.append(f"node {node} names several: {text[text.index(TIE) :][:400]}")
        else:
            found.append(f"node {node} tells no cause; its log ends: {text[-600:]!r}")
    if want.same and len({story for node, story in stories.items() if node != want.node}) > 1:
        found.append(f"the nodes tell different causes: {stories}")
    return found
