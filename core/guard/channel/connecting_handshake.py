"""The connecting side's handshake on one socket: send the hello, prove the secret, wait for the welcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..loop.framing import Nonsense, encode
from ..loop.stream import Stream
from ..loop.untrusted import integer, number, parse
from .connection import CHANNEL, LAST_NODE, Connection, cannot_understand, peer_ip, protect, sentence
from .proof import Seal, Transcript, is_nonce, new_nonce

if TYPE_CHECKING:
    from ..loop.framing import Header

    class Fail(Protocol):
        """Takes a sentence; see :class:`~.connect.ConnectError` for the rest."""

        def __call__(self, got: str, interrupted: bool = False, refusal: str = "") -> None: ...


CHECK_NETWORK = (
    "Check that the other node runs, and that the security group, firewall or network policy lets the nodes of "
    "one job reach each other on all ports."
)
"""Follows what went wrong where the network may be the reason."""


class ConnectingHandshake:
    """Proves the secret on ``stream``, with ``hello`` as the first frame. One of the callbacks is called, unless
    ``stream`` is closed before.

    Parameters
    ----------
    on_proved : callable
        Takes the :class:`Connection`.
    retry : callable
        Takes a clause: another attempt may succeed.
    fail : callable
        Takes a sentence: no other attempt can succeed.

    Attributes
    ----------
    state : str
        A clause for how far it is.
    """

    def __init__(
        self,
        stream: Stream,
        secret: bytes,
        hello: Header,
        on_proved: Callable[[Connection], None],
        retry: Callable[[str], None],
        fail: Fail,
    ) -> None:
        self.state = "connected, but nothing answered"
        self._stream = stream
        self._secret = secret
        self._hello = hello
        self._on_proved = on_proved
        self._retry = retry
        self._fail = fail
        self._signed = b""

    def begin(self) -> None:
        """Send the hello."""
        stream = self._stream
        frame = encode({**self._hello, "nonce": new_nonce()})
        self._signed = frame[8:]
        stream.decoder.parse = parse
        stream.on_frame = self._on_challenge
        stream.on_close = lambda reason: self._retry(f"connected, then {reason}")
        stream.on_fault = self._on_fault
        stream.send_bytes(frame)

    def _on_fault(self, error: Exception) -> None:
        # Before the proof; what the gang itself sends goes to the fault callback of the connection, or below.
        if isinstance(error, Nonsense):
            self._retry("something that is no gang answered")
        else:
            self._fail(f"{type(error).__name__}: {error}. This is a fault of metaflow-gang; please report it.")

    def _on_challenge(self, frame: Header, payload: bytes) -> None:
        if frame.get(CHANNEL) == "refused":
            self._refused(frame)
            return
        nonce, stream = frame.get("nonce"), self._stream
        if not is_nonce(nonce) or type(frame.get("node")) is not int:
            self._fail("something that is no gang answered there. Another program may use this port.")
            return
        node = integer(frame, "node", 0, LAST_NODE)
        transcript = Transcript(self._secret, self._signed, str(nonce), node)
        if not transcript.proves("accepting", frame.get("proof")):
            self._fail("what answered does not know this gang's secret. Another gang or program may use this port.")
            return
        clock = time.time()
        stream.send({"clock": clock, "proof": transcript.proof("connecting", clock)})
        protect(stream, Seal(transcript.key("accepting")))
        role = self._hello["role"]
        try:
            address = peer_ip(stream.sock.getpeername())
        except OSError:
            address = ""  # the other side has gone meanwhile, which the stream reports next
        connection = Connection(stream, Seal(transcript.key("connecting")), role, node, self._hello["info"], address)
        self.state = "connected, but the handshake was not completed"
        stream.on_frame = lambda header, body: self._on_welcome(connection, header)
        # No second attempt from here on: the gang may have counted this node as joined already.
        stream.on_close = lambda reason: self._fail(f"{reason} in the handshake. {CHECK_NETWORK}", interrupted=True)
        stream.on_fault = lambda error: self._fail(f"the gang {cannot_understand(error)}.")

    def _on_welcome(self, connection: Connection, frame: Header) -> None:
        if frame.get(CHANNEL) == "refused":
            self._refused(frame, proved=True)
            return
        if frame.get(CHANNEL) == "busy":
            self._retry("connected, but too many others were connecting")
            return
        if frame.get(CHANNEL) != "welcome":
            self._fail("the handshake went wrong: the versions of metaflow-gang may differ.")
            return
        connection.offset = number(frame, "offset", -1e12, 1e12)
        connection.uncertainty = number(frame, "uncertainty", 0.0, 1e12)
        connection.take_over()
        self._on_proved(connection)

    def _refused(self, frame: Header, proved: bool = False) -> None:
        why = sentence(frame.get("why"))
        self._fail(f"refused by the gang: {why}.", refusal=why if proved else "")
