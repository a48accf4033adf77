"""How two guards prove the gang's secret to each other, and authenticate every later frame."""

from __future__ import annotations

import hmac
import os

from ..loop.framing import WireError

MAC_BYTES = 32


class Transcript:
    """The frames of both sides of a handshake, and the proofs and keys that are derived from them with the secret.

    ``hello`` is the header of the connecting side's first frame, as it was sent; ``acceptor_nonce`` has passed
    :func:`is_nonce`.
    """

    def __init__(self, secret: bytes, hello: bytes, acceptor_nonce: str, acceptor_node: int) -> None:
        if len(secret) < 16:
            raise ValueError(f"A gang's secret has at least 16 bytes; this one has {len(secret)}.")
        self._secret = secret
        # The bytes as they came: to read them and write them again would be one more thing that can go wrong.
        self._text = b"%d %b%b %d" % (len(hello), hello, acceptor_nonce.encode(), acceptor_node)

    def proof(self, side: str, clock: float = 0.0) -> str:
        """What ``side`` ("accepting" or "connecting") shows to prove that it knows the secret."""
        return self._digest(f"gang proof {side} {clock!r} ").hex()

    def key(self, side: str) -> bytes:
        """The key for the frames that ``side`` sends."""
        return self._digest(f"gang frames {side} ")

    def proves(self, side: str, proof: object, clock: float = 0.0) -> bool:
        """Whether ``proof``, which may be anything, is what ``side`` has to show."""
        shown = proof.encode(errors="replace") if isinstance(proof, str) else b""
        return hmac.compare_digest(shown, self.proof(side, clock).encode())

    def _digest(self, label: str) -> bytes:
        return hmac.digest(self._secret, label.encode() + self._text, "sha256")


class Seal:
    """One direction's key and counter."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")
        self._count = 0

    def mac(self, frame: bytes | memoryview) -> bytes:
        """The MAC of the next frame of this direction."""
        mac = self._keyed.copy()
        mac.update(self._count.to_bytes(8, "big"))
        mac.update(frame)
        self._count += 1
        return mac.digest()

    def check(self, frame: memoryview, trailer: memoryview) -> None:
        """Raise :class:`WireError` unless ``trailer`` is the MAC of the next frame."""
        if not hmac.compare_digest(self.mac(frame), trailer):
            raise WireError("bad MAC")


def new_nonce() -> str:
    return os.urandom(32).hex()


def is_nonce(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")
