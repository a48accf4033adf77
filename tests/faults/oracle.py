"""What a cell's fault has to lead to. It follows from the fault alone: nothing here looks at the code under test."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import acts
from cells import Cell

FIRST = re.compile(r"[Tt]he first failure was on (node \d+)(?: \([^)\n]*\))?: ([^\n]*)")
TIE = "These failed within the same moment"


@dataclass(frozen=True)
class Expected:
    """``node`` is to blame in the words ``told`` on each node that is not ``silent``; None where the run ends well.

    ``own``: what a node may say in its stead, since it raises its own exception. ``cause`` is False where the run fails
    and no gang is there to tell why.
    """

    node: int | None
    told: str
    own: dict[int, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
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
    "message of many lines": "ValueError",
    "message that is no UTF-8": r"ValueError: a name (\?|\\udcff) that",
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
        return Expected(cell.node, row.told, cause=False)
    node = int(row.blames.removeprefix("node ")) if row.blames else cell.node
    silent = {*row.silent, *_cannot_tell(cell, node)}
    own = {}
    who = row.who.split()[0]
    told = row.told or _words(cell)
    if who in ("rank", "launcher", "raylet", "gcs_server"):
        own = {node: told}
        if cell.launcher in ("mpi", "deepspeed", "ray"):
            own[0] = told  # its launcher's exception is raised where that runs
    elif who == "guard":
        own = {node: "guard"}
    elif who in ("task", "all"):
        own = {node: told}
    return Expected(node, told, own, silent, same=row.place != "hosts")


def _cannot_tell(cell: Cell, node: int) -> set[int]:
    """Nodes that are dead, whose body had ended well before, or whose words have no way out."""
    row, others = cell.row, set(range(cell.nodes)) - {cell.node}
    who, silent = row.who.split()[0], set()
    if (
        who == "task"
        and row.what not in EXCEPTIONS
        and not row.what.startswith("sys.exit")
        and row.what != "thread kept"
    ):
        silent |= {cell.node}
    if row.what == "return early" or (row.what == "SIGTERM" and row.when == "before join"):
        silent |= {cell.node}
    if row.when == "forming":
        silent |= {cell.nodes - 1}
    if who == "task" and (row.when == "importing" or (row.what == "sys.exit(0)" and row.when == "before join")):
        silent |= {cell.node}  # Metaflow does not know it yet, or nothing of it is called any more
    if row.when == "importing":
        silent |= others - {0}  # which may be importing as well when it is ended
    if row.when in ("storing", "end hook", "end"):
        silent |= others - {0, 1} if cell.node else others
        if who == "guard":
            silent |= {cell.node}  # its task's body has ended well, and nothing of it is called any more
    if row.place == "local" and who == "guard" and cell.node == 0:
        silent |= others  # what they write goes through it
    if who == "guard" and row.what == "SIGSTOP":
        silent |= {cell.node}
    if who == "run" and row.what == "SIGKILL":
        silent |= {0}  # its log is stored by the run
    return silent


def _words(cell: Cell) -> str:
    row = cell.row
    who, what = row.who, row.what.split(" beside ")[0]
    if who.startswith("task"):
        if what in ("SIGTERM", "SIGINT", "SIGSTOP"):
            return SIGNALS[what]
        if what in EXCEPTIONS:
            return EXCEPTIONS[what]
        if cell.node == 0 or row.place == "hosts":
            # Its guard is not its parent, and sees only that it is gone.
            return "|".join([DIED, *(words[what] for words in (SIGNALS, ENDS) if what in words)])
        return SIGNALS.get(what) or ENDS[what]
    if who.startswith("guard"):
        return SIGNALS["SIGSTOP"] + "|silent|answer" if what == "SIGSTOP" else r"guard|lost"
    if who == "run":
        return r"interrupted \(Ctrl-C, SIGINT\)" if what.startswith("SIGINT") else "the process of the run"
    if who.startswith(("rank", "child", "launcher", "raylet", "gcs")):
        return SIGNALS.get(what) or EXCEPTIONS.get(what) or ENDS[what]
    return "lost|reach|answer"


def last_told(text: str) -> re.Match[str] | None:
    """The last cause that a log tells; a refusal tells one within a sentence of its own."""
    found = None
    for match in re.finditer(r"(?=[Tt]he first failure was on )", text):
        found = FIRST.match(text, match.start()) or found
    return found


def problems(cell: Cell, code: int, logs: dict[int, str], output: str) -> list[str]:
    """What is wrong about a run's exit code and what each node told, a sentence each."""
    want = expected(cell)
    if cell.row.restarts:
        return _wrong_restart(cell, want, code, output)
    if want.node is None:
        return [] if code == 0 else [f"the run ended with {code}, and has to end well: {output[-1500:]}"]
    if cell.row.who == "run" and cell.row.what == "SIGKILL":
        found = [] if code == -9 else [f"the run ended with {code}, and was killed"]
    else:
        found = [] if code > 0 else [f"the run ended with {code}, and has to fail"]
    if not want.cause:
        if want.told and not re.search(want.told, output):
            found.append(f"nothing tells the cause /{want.told}/")
        return found
    stories: dict[int, str] = {}
    for node in range(cell.nodes):
        text = logs.get(node, "")
        match = last_told(text)
        if match is not None:
            at = match.start()
            stories[node] = f"{match[1]}: {match[2]}".rstrip(".")
            found += _wrong(cell, want, node, match, text[at : at + 20_000])
        elif TIE in text:
            found.append(f"node {node} names several: {text[text.index(TIE) :][:400]}")
        elif node not in want.silent and not (node in want.own and re.search(want.own[node], text)):
            found.append(f"node {node} tells no cause; its log ends: {text[-600:]!r}")
    if want.same and len(set(stories.values())) > 1:
        found.append(f"the nodes tell different causes: {stories}")
    return found


def _wrong_restart(cell: Cell, want: Expected, code: int, output: str) -> list[str]:
    """The run ends well, and has told one restart, of the right rank and for the right reason."""
    found = [] if code == 0 else [f"the run ended with {code}, and has to end well: {output[-1500:]}"]
    told = re.findall(r"\[gang\] restart 1 of 1: (.*)", output)
    if len(told) != 1:
        return [*found, f"{len(told)} restarts were told: {told}"]
    who = cell.row.who if cell.row.who.startswith("rank") else ""
    for words in (who, rf"on node {want.node}\b", want.told):
        if not re.search(words, told[0]):
            found.append(f"the restart does not tell /{words}/: {told[0]}")
    return found


def _wrong(cell: Cell, want: Expected, node: int, match: re.Match[str], whole: str) -> list[str]:
    where, told = match[1], match[2]
    row = cell.row
    # An interrupt hits all nodes. One that left in order is told beside the one that misses it, wherever that runs.
    anywhere = (row.who == "run" and row.what.startswith("SIGINT")) or (
        row.who.startswith("rank") and row.what == "os._exit(0)"
    )
    if where != f"node {want.node}" and not anywhere:
        return [f"node {node} blames {where} ({told}), and it was node {want.node}"]
    if not re.search(want.told, whole):
        return [f"node {node} does not tell the cause /{want.told}/: {told}"]
    name = "python" if cell.launcher == "gang" else row.who
    named = re.search(rf"\b{name}\b", whole if anywhere else told, re.IGNORECASE)
    if row.who.startswith("rank") and not row.blames and not named:
        return [f"node {node} does not name {name}: {told}"]
    return []
