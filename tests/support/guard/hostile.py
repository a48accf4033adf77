"""A grammar of what the channel's other side may send, and of how that can go wrong: nesting, sizes, types, order.

It draws from any ``random.Random``: a seeded one in ``benchmarks/attack.py``, hypothesis's own in the tests.
"""

from __future__ import annotations

import json
import struct
import zlib
from random import Random
from typing import Any

LIMIT = 4096
"""What a connection may send before its proof; frames are around that, too."""

OPERATIONS = {
    "gather": ("seq", "kind", "entry", "root"),
    "fail": ("failure",),
    "ranks-failed": ("failure",),
    "cancel": ("key",),
    "ranks-ended": ("ranks",),
    "save-seconds": ("seconds",),
    "phases": ("since", "times"),
    "sample": ("sample",),
    "traces": ("found",),
    "stopped": (),
    "bye": (),
    "done": (),
    "uploads": (),
    "alive": ("number",),
    "ping": (),
    "ends-task": (),
    "tolerate": (),
    "restarted": (),
    "tidy-up": (),
    "tidied": (),
    "watch-samples": (),
    "still": ("still",),
    "want-stacks": ("number",),
    "stacks": ("number", "records"),
}
"""What a node sends to the hub, with the fields that each has."""

_RIGHT: dict[str, Any] = {
    "seq": 0,
    "kind": "barrier()",
    "root": 0,
    "entry": {"blob": "0-1"},
    "key": "1.2.3",
    "ranks": [[0, 1.7e9], [1, 1.7e9]],
    "seconds": 1.5,
    "number": 1,
    "sample": {"at": 1.7e9, "cpu": 0.5, "gpus": [{"util": 5}], "ranks": [{"rank": 0, "line": "x"}]},
    "found": {"where": "s3://a/b", "left_out": "", "files": [{"name": "a.pt.trace.json", "rank": 0, "bytes": 7}]},
    "still": True,
    "records": [{"rank": 0, "title": "rank 0", "place": "f at a.py:1", "inner": "", "stack": "f at /a.py:1"}],
    "since": 1.7e9,
    "times": {"started": 0.0, "met": 0.5},
    "failure": {"node": 1, "kind": "exit", "text": "rank 1 exited with code 1", "time": 1.7e9, "order": 1},
}

_TEXTS = ("", "x", "\0", "\ud800", "é" * 50, "[" * 40, '"\\"', "member", "ring", "~", "1e5", "0" * 64, "ab" * 32)
_NUMBERS = (0, 1, -1, 2, 2**31, 2**53, 2**63, 10**19, -(10**20), 10**40, 0.5, -0.0, 1e308, 1e-308)


class Grammar:
    """Draws from ``random``. ``identity`` is the gang's, as its nodes send it."""

    def __init__(self, random: Random, identity: list[Any], protocol: int) -> None:
        self._random = random
        self._identity = identity
        self._protocol = protocol

    def _chance(self, of: int) -> bool:
        return self._random.randrange(of) == 0

    def value(self, depth: int = 3) -> Any:
        """Any JSON value."""
        kind = self._random.randrange(8 if depth else 5)
        if kind == 0:
            return self._random.choice((None, True, False))
        if kind in (1, 2):
            return self._random.choice(_NUMBERS)
        if kind in (3, 4):
            text = self._random.choice(_TEXTS)
            return text * self._random.choice((1, 1, 1, 10, 100)) if text else text
        size = self._random.randrange(4)
        if kind == 7:
            return self._nested(self._random.choice((3, 15, 16, 17, 32, 33, 200)))
        if kind == 5:
            return [self.value(depth - 1) for _ in range(size)]
        return {self._random.choice(_TEXTS): self.value(depth - 1) for _ in range(size)}

    def _nested(self, depth: int) -> Any:
        value: Any = self._random.choice((0, "x", None))
        as_list = self._chance(2)
        for _ in range(depth):
            value = [value] if as_list else {"a": value}
        return value

    def _changed(self, header: dict[str, Any]) -> dict[str, Any]:
        """As it should be, or with a field that is none."""
        header = dict(header)
        for _ in range(self._random.choice((0, 1, 1, 2))):
            key = self._random.choice([*header, "extra"])
            change = self._random.randrange(4)
            if change == 0:
                header.pop(key, None)
            elif change == 1 and isinstance(header.get(key), dict):
                header[key] = self._changed(header[key])
            else:
                header[key] = self.value()
        return header

    # -- before the proof --------------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        info = {"hostname": "host-1", "cpus": 1, "gpus": 0, "ring_port": 1}
        return self._changed(
            {
                "version": self._protocol,
                "identity": self._identity,
                "role": "member",
                "node": 1,
                "nonce": "ab" * 32,
                "info": self._changed(info),
            }
        )

    def proof(self) -> dict[str, Any]:
        return self._changed({"clock": 1.7e9, "proof": "ab" * 32})

    def frame(self, header: dict[str, Any]) -> bytes:
        """A frame of it, or of something near it."""
        payload = b"" if self._chance(3) else bytes(self._random.choice((0, 0, 1, 100, LIMIT, 3 * LIMIT)))
        way = self._random.randrange(12)
        if way == 6:  # what Python reads, and then cannot write
            header = {**header, self._random.choice([*header, "info"]): "@deep@"}
        text = json.dumps(header).encode(errors="surrogatepass")
        text = text.replace(b'"@deep@"', b"[" * 985 + b"]" * 985)
        if way == 0:
            text = text[: self._random.randrange(len(text) + 1)]
        elif way == 1:
            text = self._random.choice((b"[]", b"null", b"NaN", b"{", b'{"a":1e999}', b'{"a":NaN}', b"\xff\xfe", b"5"))
        elif way == 2:
            text = self._random.choice((b"[", b'{"a":', b'"', b"9", b"\\")) * self._random.choice((10, 900, 3400))
        elif way == 3:
            at = self._random.randrange(len(text))
            text = text[:at] + bytes([self._random.randrange(256)]) + text[at + 1 :]
        length, size = len(text) + len(payload) + 4, len(text)
        if way == 4:
            length = self._random.choice((0, 1, 3, 4, LIMIT, LIMIT + 1, 2**31, 2**32 - 1, length - 1, length + 1))
        elif way == 5:
            size = self._random.choice((0, 1, LIMIT, 2**31, 2**32 - 1, size - 1, size + 1))
        return struct.pack(">II", length & 0xFFFFFFFF, size & 0xFFFFFFFF) + text + payload

    def connection(self) -> list[bytes]:
        """What one connection sends: mostly a hello and a proof, in some order, with other things between."""
        many = self._random.choice((1, 12))
        order = self._random.choice(("h", "hp", "hp", "hp" + many * "m", "ph", "h" * many, "p", "m" * many, "mhp", ""))
        makers = {"h": self.hello, "p": self.proof, "m": lambda: self.message()[0]}
        sent = [self.frame(makers[what]()) for what in order]
        if not sent or self._chance(10):
            sent.append(self._random.choice((b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(64))))
        if self._chance(10):
            sent[-1] = sent[-1][: self._random.randrange(len(sent[-1]) + 1)]
        return sent

    # -- after it ----------------------------------------------------------------------------------------------------

    def message(self) -> tuple[dict[str, Any], bytes]:
        """Header and payload of what a member may send, or of something near it."""
        op = self._random.choice(list(OPERATIONS))
        header = {"op": op, **{field: _RIGHT[field] for field in OPERATIONS[op]}}
        way = self._random.randrange(8)
        if way == 0:
            header = {"~": self._random.choice(("packed", "bye", "welcome", "busy", 5, None))}
        elif way > 2:
            header = self._changed(header)
        payload = self._random.choice((b"", b"", b"x", bytes(1 << 16), zlib.compress(b"[" * 100), zlib.compress(b"{}")))
        return header, payload


def bomb() -> bytes:
    """A small compressed message of 17 MiB."""
    return zlib.compress(b'{"a":"' + b" " * (17 << 20) + b'"}', 1)
