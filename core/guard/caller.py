"""The calling side of :mod:`remote`: ssh's command line, the streams of one command, and its exit code."""

from __future__ import annotations

import json
import os
import select
import signal

from .bulklink import BulkError
from .exchange import (
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
from .secure import connect

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Iterable
    from typing import Any, NoReturn

FLAGS = frozenset("1246AaCdfGgKkMNnqsTtVvXxYy")
"""Options of ssh and rsh that have no value. All are accepted, and only -n and -f (no stdin) mean something here."""

VALUED = frozenset("BbcDEeFIiJLlmOopQRSWw")
"""Those that have one, in the same word or the next."""

FAILED = 255
"""The exit code that says that the command was not run, or that nobody knows how it ended; ssh's."""

SHOWN_NODES = 8
"""How many nodes the complaint about an unknown one names."""


class Refusal(Exception):
    """Why the command cannot be run, as a sentence."""


def parse(words: list[str]) -> tuple[str, str, bool]:
    """The host, the command as a shell gets it, and whether it has this program's stdin.

    Raises :class:`Refusal` for what ssh would not take either.
    """
    rest, host, stdin = list(words), "", True
    while rest and (rest[0].startswith("-") or not host):
        word = rest.pop(0)
        if not word.startswith("-"):
            host = word
        elif word == "--":
            host = host or (rest.pop(0) if rest else "")
            break
        else:
            stdin &= _option(word, rest)
    if not host or not rest:
        raise Refusal(f"A host and a command are needed, not only: {' '.join(words)}")
    return host, " ".join(rest), stdin


def _option(word: str, rest: list[str]) -> bool:
    """Skip an option, and its value in ``rest``; False where it takes stdin away."""
    stdin = True
    for at, letter in enumerate(word[1:], 2):
        if letter in VALUED:
            if at == len(word) and rest:
                del rest[0]
            break
        if letter not in FLAGS:
            raise Refusal(f"The option {word} is none that is known here.")
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


def forward(exchange: Exchange, takes_stdin: bool) -> int:
    """Carry the streams until the command has ended; its exit code, negative for a signal.

    Raises :class:`BulkError` where the connection breaks, :class:`Refusal` where the node does not run it.
    """
    outlets = {STDOUT: Outlet(exchange, STDOUT, 1), STDERR: Outlet(exchange, STDERR, 2)}
    credit = WINDOW
    if not takes_stdin:
        exchange.send(STDIN)
    try:
        while True:
            for kind, data in exchange.transfer():
                if kind in outlets:
                    outlets[kind].put(data)
                elif kind == TAKEN:
                    credit += taken(data)[1]
                elif kind == ENDED:
                    exchange.close()
                    return int(data)
                elif kind == REFUSED:
                    raise Refusal(data.decode(errors="replace"))
            poll = select.poll()
            poll.register(exchange, exchange.events)
            if takes_stdin and credit:
                poll.register(0, select.POLLIN)
            ready = _write(outlets.values(), poll)
            if 0 in ready:
                piece = _read(min(credit, PIECE))
                if piece is not None:
                    credit -= len(piece)
                    takes_stdin = bool(piece)
                    exchange.send(STDIN, piece)
    finally:
        # However it ended: what has come is the command's last words.
        while any(outlet.waiting for outlet in outlets.values()):
            _write(outlets.values(), select.poll())


def _write(outlets: Iterable[Outlet], poll: select.poll) -> set[int]:
    """Wait until something is ready, in ``poll`` or of the outlets, and write what can be; the descriptors."""
    for outlet in outlets:
        if outlet.waiting:
            poll.register(outlet.fd, select.POLLOUT)
    ready = {fd for fd, _ in poll.poll()}
    for outlet in outlets:
        if outlet.fd in ready:
            outlet.write()
    return ready


def _read(most: int) -> bytes | None:
    """What stdin has; None where it turned out to have nothing now."""
    try:
        return os.read(0, most)
    except BlockingIOError:
        return None
    except OSError:  # a folder, or a terminal that was hung up: as good as its end
        return b""


def run(file: str, words: list[str]) -> int:
    """Everything but the process: the exit code of the command, negative for a signal."""
    host, command, takes_stdin = parse(words)
    with open(file, encoding="utf-8") as stream:
        gang = json.load(stream)
    node = find(host, gang["nodes"])
    text = os.fsencode(command)
    if len(text) >= LONGEST_COMMAND:
        raise Refusal(f"The command has {len(text)} bytes; {LONGEST_COMMAND - 1} is the limit of the system.")
    with connect(node["address"], node["port"], bytes.fromhex(gang["key"])) as link:
        link.send_header({"run": True})
        exchange = Exchange(link)
        exchange.send(COMMAND, text)
        return forward(exchange, takes_stdin)


def main(argv: list[str]) -> NoReturn:
    """The process: ends with an exit code, or, where somebody ends it, by the signal itself."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: no connection must take its number
    os.close(fd)
    try:
        code = run(argv[0], argv[1:])
        code = 128 - code if code < 0 else code
    except BrokenPipeError:  # whoever wanted the output has gone
        code = FAILED
    except Exception as error:  # ssh has one exit code for whatever it is, and its callers know it
        os.write(2, f"[gang] {_sentence(error, argv)}\n".encode(errors="replace"))
        code = FAILED
    os._exit(code)  # the kernel closes everything, faster


def _sentence(error: Exception, argv: list[str]) -> str:
    if isinstance(error, (Refusal, BulkError)):
        return str(error)
    return f"The command {' '.join(argv[1:])!r} could not be run on another node: {type(error).__name__}: {error}."
