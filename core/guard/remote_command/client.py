"""The calling side of a remote command: ssh's command line, the streams of one command, and its exit code.

The guard calls, for a program on its node (:mod:`.shim`) that has handed it its standard streams: so no key is outside
of the guards, and the program, which starts once for each node, has next to nothing to import.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..tls.endpoints import connect
from ..tls.link import BulkError
from .protocol import (
    COMMAND,
    ENDED,
    LONGEST_COMMAND,
    PIECE,
    REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TAKEN,
    WINDOW,
    Exchange,
    Outlet,
    taken,
)

if TYPE_CHECKING:
    Streams = tuple[int, int, int]

FLAGS = frozenset("1246AaCdfGgKkMNnqsTtVvXxYy")
"""Options of ssh and rsh that have no value. All are accepted, and only -n and -f (no stdin) mean something here."""

VALUED = frozenset("BbcDEeFIiJLlmOopQRSWw")
"""Those that have one, in the same argument or the next."""

FAILED = 255
"""The exit code where the command was not run, or that nobody knows how it ended; ssh's."""

SHOWN_NODES = 8
"""How many nodes the complaint about an unknown one names."""


class Refusal(Exception):
    """Why the command cannot be run, as a sentence."""


def parse(arguments: list[str]) -> tuple[str, str, bool]:
    """The host, the command as a shell gets it, and whether it has this program's stdin.

    Raises :class:`Refusal` for what ssh would not take either.
    """
    rest, host, stdin = list(arguments), "", True
    while rest and (rest[0].startswith("-") or not host):
        argument = rest.pop(0)
        if not argument.startswith("-"):
            host = argument
        elif argument == "--":
            host = host or (rest.pop(0) if rest else "")
            break
        else:
            stdin &= _option(argument, rest)
    if not host or not rest:
        raise Refusal(f"A host and a command are needed, not only: {' '.join(arguments)}")
    return host, " ".join(rest), stdin


def _option(argument: str, rest: list[str]) -> bool:
    """Skip an option, and its value in ``rest``; False where it takes stdin away."""
    stdin = True
    for at, letter in enumerate(argument[1:], 2):
        if letter in VALUED:
            if at == len(argument) and rest:
                del rest[0]
            break
        if letter not in FLAGS:
            raise Refusal(f"The option {argument} is none that is known here.")
        stdin &= letter not in "nf"
    return stdin


def find(host: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The node that is called ``host``, which may be ``user@host``. Raises :class:`Refusal` where there is none."""
    wanted = host.rpartition("@")[2].lower()
    wanted = wanted[1:-1] if wanted.startswith("[") and wanted.endswith("]") else wanted
    for node in nodes:
        if wanted in node["names"]:
            return node
    known = ", ".join(" or ".join(node["names"]) for node in nodes[:SHOWN_NODES])
    more = f", and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    raise Refusal(f"No node of this gang is called {host!r}. Its nodes are: {known}{more}.")


def call(nodes: list[dict[str, Any]], key: bytes, arguments: list[str], streams: Streams, program: int = -1) -> int:
    """Run a command line of ssh: the exit code, as a program can have it; what went wrong is written to its stderr.

    ``program`` is a descriptor that hangs up when the program whose ``streams`` these are has gone.
    """
    try:
        code = _run(nodes, key, arguments, streams, program)
        return 128 - code if code < 0 else code
    except BrokenPipeError:  # whoever wanted the output has gone
        return FAILED
    except Exception as error:  # ssh has one exit code for whatever it is, and its callers know it
        with suppress(OSError):
            os.write(streams[2], f"[gang] {_sentence(error, arguments)}\n".encode(errors="replace"))
        return FAILED


def _sentence(error: Exception, arguments: list[str]) -> str:
    if isinstance(error, (Refusal, BulkError)):
        return str(error)
    return f"The command {' '.join(arguments)!r} could not be run on another node: {type(error).__name__}: {error}."


def _run(nodes: list[dict[str, Any]], key: bytes, arguments: list[str], streams: Streams, program: int) -> int:
    host, command, takes_stdin = parse(arguments)
    node = find(host, nodes)
    text = os.fsencode(command)
    if len(text) >= LONGEST_COMMAND:
        raise Refusal(f"The command has {len(text)} bytes; {LONGEST_COMMAND - 1} is the limit of the system.")
    with connect(node["address"], node["port"], key) as link:
        link.send_header({"run": True})
        exchange = Exchange(link)
        exchange.send(COMMAND, text)
        return _Forward(exchange, streams, program).run(takes_stdin)


class _Gone(Exception):
    """The program has ended: there is nobody to forward for."""


class _Forward:
    """The streams of one command between its node and ``program``."""

    def __init__(self, exchange: Exchange, streams: Streams, program: int) -> None:
        self._exchange, self._stdin, self._program = exchange, streams[0], program
        self._outlets = {STDOUT: Outlet(exchange, STDOUT, streams[1]), STDERR: Outlet(exchange, STDERR, streams[2])}

    def run(self, takes_stdin: bool) -> int:
        """Until the command has ended; its exit code, negative for a signal.

        Raises :class:`BulkError` where the connection breaks, :class:`Refusal` where the node does not run it.
        """
        credit = WINDOW
        if not takes_stdin:
            self._exchange.send(STDIN)
        try:
            while True:
                for kind, data in self._exchange.transfer():
                    if kind in self._outlets:
                        self._outlets[kind].put(data)
                    elif kind == TAKEN:
                        credit += taken(data)[1]
                    elif kind == ENDED:
                        self._exchange.close()
                        return int(data)
                    elif kind == REFUSED:
                        raise Refusal(data.decode(errors="replace"))
                poll = select.poll()
                poll.register(self._exchange, self._exchange.events)
                if takes_stdin and credit:
                    poll.register(self._stdin, select.POLLIN)
                if self._stdin in self._wait(poll):
                    piece = _read(self._stdin, min(credit, PIECE))
                    if piece is not None:
                        credit -= len(piece)
                        takes_stdin = bool(piece)
                        self._exchange.send(STDIN, piece)
        except _Gone:
            return FAILED
        finally:
            # However it ended: what has come is the end of the command's output.
            with suppress(_Gone):
                while any(outlet.waiting for outlet in self._outlets.values()):
                    self._wait(select.poll())

    def _wait(self, poll: select.poll) -> set[int]:
        """Wait until something is ready, in ``poll`` or of the outlets, and write what can be; the descriptors."""
        for outlet in self._outlets.values():
            if outlet.waiting:
                poll.register(outlet.fd, select.POLLOUT)
        if self._program >= 0:
            poll.register(self._program, select.POLLIN)  # it sends nothing more, so this is its end
        ready = {fd for fd, _ in poll.poll()}
        if self._program in ready:
            raise _Gone
        for outlet in self._outlets.values():
            if outlet.fd in ready:
                outlet.write()
        return ready


def _read(fd: int, most: int) -> bytes | None:
    """What the stream has; None where it turned out to have nothing now."""
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return None
    except OSError:  # a folder, or a terminal that was hung up: as good as its end
        return b""
