"""The messages between nodes and hub: what a node sends is checked here, and the message that stops a node is made.

A member has proved the secret, and may still have gone wrong: then its own node ends, and not the hub. Every message of
another node passes here first; an operation that is new in :meth:`.hub.Hub.receive` needs its line in ``_FIELDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..failure_record import EVIDENCE, EXCEPTION_LIMIT, PEER, PREEMPTED, TEXT_LIMIT, Failure
from ..loop.framing import Nonsense
from ..loop.untrusted import integer, number, shown, string
from ..phases import NAMES
from ..samples import user_metrics
from ..stalls import limits
from ..tracebacks import DETAIL_LIMIT, MESSAGE_LIMIT

if TYPE_CHECKING:
    from ..loop.framing import Header

HEADER_BYTES = 256 * 1024
"""Of one message: a failure's text and the end of its output, each character written as up to twelve bytes."""

TO_ONE_TOTAL = 8 << 20
"""Bytes of payload that the messages of one collective bring to one node, all nodes together ..."""

TO_ALL_TOTAL = 1 << 20
"""... and to all nodes: node 0 sends it to each of them."""

_ALWAYS = 1024
"""Bytes of payload that every node may give to a collective, however many nodes there are."""

MOST = {
    "fail": 1_000,
    "ranks-failed": 1_000,
    "want-stacks": 10_000,
    "cancel": 10_000,
    "save-seconds": 1_000,
    "phases": 100,
    "traces": 10,
}
"""How often one node may send a message that the hub stores, or sends on to all."""

_LAST_NUMBER = 1 << 53
_RANKS = 4096
"""Of one node."""
_YEAR = 365 * 86400.0
_CODES = 1 << 32
_SAMPLE_TEXT = 300
_TRACES, _TRACE_NAME = 32, 200
"""Those of ``core/storage/traces.py``."""
_END_OF_TIME = 1e12
_END_OF_NUMBERS = 1.8e308


def inline_bytes(num_nodes: int) -> int:
    """Bytes of payload that one node may give to one collective; what is larger goes beside the control connections."""
    return min(TO_ALL_TOTAL, max(_ALWAYS, TO_ONE_TOTAL // num_nodes))


def fits_all(total: int, num_nodes: int) -> bool:
    """Whether ``total`` bytes of payload, of all nodes together, are sent to all nodes; else only to node 0."""
    return total <= max(TO_ALL_TOTAL, num_nodes * _ALWAYS)


def check_info(info: Header) -> None:
    """Check what a node sends about itself when it joins. Raises :class:`Nonsense` where others could not use it."""
    string(info, "hostname", 255)
    integer(info, "cpus", 0, 1 << 20)
    integer(info, "gpus", 0, 1 << 20)
    integer(info, "ring_port", 1, 65535)
    _plain(info, "info")


def stop_message(failure: Failure) -> Header:
    """The message that stops a node, because of ``failure``, the first one."""
    return {"op": "stop", "order": failure.order, "preempted": failure.kind == PREEMPTED}


class Checker:
    """Checks the messages of one node of a gang of ``num_nodes``."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self._counts: dict[str, int] = {}

    def check(self, header: Header, payload: bytes) -> None:
        """Raises :class:`Nonsense` unless the hub can act on this message."""
        op = header.get("op")
        check = _FIELDS.get(op) if isinstance(op, str) else None
        if not isinstance(op, str) or check is None:
            raise Nonsense(f"the operation {shown(op)}")
        if payload and op != "gather":
            raise Nonsense(f"{len(payload)} bytes with the operation {op!r}, which has none")
        if op in MOST:
            count = self._counts[op] = self._counts.get(op, 0) + 1
            if count > MOST[op]:
                raise Nonsense(f"the operation {op!r} more than {MOST[op]} times")
        check(self, header, payload)


def _nothing(checker: Checker, header: Header, payload: bytes) -> None:
    pass


def _gather(checker: Checker, header: Header, payload: bytes) -> None:
    integer(header, "seq", 0, _LAST_NUMBER)
    string(header, "kind", 200)
    if header.get("root") is not None:
        integer(header, "root", 0, checker.num_nodes - 1)
    most = inline_bytes(checker.num_nodes)
    if len(payload) > most:
        raise Nonsense(f"{len(payload)} bytes for a collective, in which a node has {most}")
    entry = header.get("entry", {})
    if not isinstance(entry, dict):
        raise Nonsense(f"'entry' is {shown(entry)}")
    _plain(entry, "entry")


def _fail(checker: Checker, header: Header, payload: bytes) -> None:
    failure, last = header.get("failure"), checker.num_nodes - 1
    if not isinstance(failure, dict):
        raise Nonsense(f"'failure' is {shown(failure)}")
    integer(failure, "node", 0, last)
    string(failure, "kind", 60)
    string(failure, "text", TEXT_LIMIT + 10)
    number(failure, "time", 0.0, _END_OF_TIME)
    if "detail" in failure:
        string(failure, "detail", DETAIL_LIMIT)
    if "order" in failure:
        integer(failure, "order", EVIDENCE, PEER)
    if "exception" in failure:
        string(failure, "exception", EXCEPTION_LIMIT)
    if "message" in failure:
        string(failure, "message", MESSAGE_LIMIT)
    if failure.get("exit_code") is not None:
        integer(failure, "exit_code", -_CODES, _CODES)
    if "uncertainty" in failure:
        number(failure, "uncertainty", 0.0, _END_OF_TIME)
    for key, most in (("rank", 1 << 30), ("peer", last), ("reporting_node", last)):
        if failure.get(key) is not None:
            integer(failure, key, 0, most)


def _alive(checker: Checker, header: Header, payload: bytes) -> None:
    if "number" in header:
        integer(header, "number", 0, _LAST_NUMBER)


def _cancel(checker: Checker, header: Header, payload: bytes) -> None:
    string(header, "key", 300)


def _ranks_ended(checker: Checker, header: Header, payload: bytes) -> None:
    ranks = header.get("ranks")
    if not isinstance(ranks, list) or len(ranks) > _RANKS:
        raise Nonsense(f"'ranks' is {shown(ranks)}")
    for pair in ranks:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Nonsense(f"'ranks' has {shown(pair)}")
        integer({"rank": pair[0]}, "rank", 0, 1 << 30)
        number({"moment": pair[1]}, "moment", 0.0, _END_OF_TIME)


def _phases(checker: Checker, header: Header, payload: bytes) -> None:
    number(header, "since", 0.0, _END_OF_TIME)
    times = header.get("times")
    if not isinstance(times, dict) or not set(times) <= set(NAMES):
        raise Nonsense(f"'times' is {shown(times)}")
    for name in times:
        number(times, name, 0.0, _END_OF_TIME)


def _sample(checker: Checker, header: Header, payload: bytes) -> None:
    sample = header.get("sample")
    if not isinstance(sample, dict):
        raise Nonsense(f"'sample' is {shown(sample)}")
    for name in ("gpus", "ranks"):
        records = sample.get(name, [])
        if not isinstance(records, list) or len(records) > 64:
            raise Nonsense(f"{name!r} is {shown(records)}")
        for record in records:
            if not isinstance(record, dict):
                raise Nonsense(f"{name!r} has {shown(record)}")
            _plain(record, name)
            if sum(len(value) for value in record.values() if isinstance(value, str)) > _SAMPLE_TEXT:
                raise Nonsense(f"{name!r} has {shown(record)}")
    log = sample.get("log", [])
    if not isinstance(log, list) or len(log) > user_metrics.MOST:
        raise Nonsense(f"'log' is {shown(log)}")
    for entry in log:
        if not isinstance(entry, list) or len(entry) != 4:
            raise Nonsense(f"'log' has {shown(entry)}")
        record = dict(zip(("name", "rank", "step", "value"), entry))  # noqa: B905
        string(record, "name", user_metrics.MOST_NAME)
        string(record, "rank", user_metrics.MOST_NAME)
        number(record, "step", -_END_OF_NUMBERS, _END_OF_NUMBERS)
        number(record, "value", -_END_OF_NUMBERS, _END_OF_NUMBERS)
    _plain({name: value for name, value in sample.items() if name not in ("gpus", "ranks", "log")}, "sample")


def _traces(checker: Checker, header: Header, payload: bytes) -> None:
    found = header.get("found")
    if not isinstance(found, dict):
        raise Nonsense(f"'found' is {shown(found)}")
    for name in ("where", "left_out"):
        string(found, name, 2000)
    files = found.get("files")
    if not isinstance(files, list) or len(files) > _TRACES:
        raise Nonsense(f"'files' is {shown(files)}")
    for file in files:
        if not isinstance(file, dict):
            raise Nonsense(f"'files' has {shown(file)}")
        string(file, "name", _TRACE_NAME)
        integer(file, "bytes", 0, _LAST_NUMBER)
        if file.get("rank") is not None:
            integer(file, "rank", 0, 1 << 30)


def _still(checker: Checker, header: Header, payload: bytes) -> None:
    if type(header.get("still")) is not bool:
        raise Nonsense(f"'still' is {shown(header.get('still'))}")


def _want_stacks(checker: Checker, header: Header, payload: bytes) -> None:
    integer(header, "number", 0, _LAST_NUMBER)


def _stacks(checker: Checker, header: Header, payload: bytes) -> None:
    integer(header, "number", 0, _LAST_NUMBER)
    records = header.get("records")
    if not isinstance(records, list) or len(records) > limits.MOST:
        raise Nonsense(f"'records' is {shown(records)}")
    for record in records:
        if not isinstance(record, dict) or len(record) != 5:
            raise Nonsense(f"'records' has {shown(record)}")
        if record.get("rank") is not None:
            integer(record, "rank", 0, 1 << 30)
        for name, most in (("title", 300), ("place", limits.NAME), ("inner", limits.NAME), ("stack", limits.TEXT)):
            string(record, name, most)


def _save_seconds(checker: Checker, header: Header, payload: bytes) -> None:
    number(header, "seconds", 0.0, _YEAR)


def _plain(record: Header, name: str) -> None:
    """Raises :class:`Nonsense` unless all values are plain and small."""
    if len(record) > 32:
        raise Nonsense(f"{name!r} has {len(record)} fields")
    for key, value in record.items():
        small = (
            value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 1000)
        )
        if not small or len(key) > 100:
            raise Nonsense(f"{shown(key)} in {name!r} is {shown(value)}")


_FIELDS: dict[str, Callable[[Checker, Header, bytes], None]] = {
    "gather": _gather,
    "fail": _fail,
    "ranks-failed": _fail,
    "cancel": _cancel,
    "ranks-ended": _ranks_ended,
    "phases": _phases,
    "sample": _sample,
    "traces": _traces,
    "still": _still,
    "want-stacks": _want_stacks,
    "stacks": _stacks,
    "save-seconds": _save_seconds,
    "stopped": _nothing,
    "ends-task": _nothing,
    "bye": _nothing,
    "done": _nothing,
    "uploads": _nothing,
    "tidied": _nothing,
    "alive": _alive,
    "ping": _nothing,
    # Of node 0 alone; of others these do nothing.
    "restarted": _nothing,
    "tidy-up": _nothing,
    "tolerate": _nothing,
    "watch-samples": _nothing,
}
