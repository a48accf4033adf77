"""A throw-away key and certificate for TLS, made without anything but the standard library.

TLS wants a certificate, the standard library can use one but not make one, and a key that ships with a package would be
a key that everybody has. So a fresh P-256 key is drawn for each server and signs a certificate for itself. The
certificate vouches for nobody: :mod:`.endpoints` authenticates both sides by the gang's secret. It is only what TLS
needs to agree on a key with ECDHE. The arithmetic is not constant in time, which matters little to a key of one attempt
that signs one certificate here (the signatures of handshakes are OpenSSL's).
"""

from __future__ import annotations

import base64
import hashlib
import os

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)

_ECDSA_WITH_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_PRIME256V1 = bytes.fromhex("06082a8648ce3d030107")
_COMMON_NAME = bytes.fromhex("0603550403")

_Point = tuple[int, int]


def self_signed(name: str = "gang") -> str:
    """Draw a key and let it sign a certificate for itself: both as PEM text, the key first (about 20 ms)."""
    secret = _scalar()
    x, y = _multiply(secret, _G)
    public = b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")
    certificate = _certificate(name, secret, public)
    key = _sequence(
        _integer(1), _tlv(0x04, secret.to_bytes(32, "big")), _tlv(0xA0, _PRIME256V1), _tlv(0xA1, _bits(public))
    )
    return _pem("EC PRIVATE KEY", key) + _pem("CERTIFICATE", certificate)


def _certificate(name: str, secret: int, public: bytes) -> bytes:
    algorithm = _sequence(_ECDSA_WITH_SHA256)
    subject = _sequence(_tlv(0x31, _sequence(_COMMON_NAME, _tlv(0x0C, name.encode()))))
    # Nobody checks the dates; these are the ones that say "without an end" (RFC 5280, 4.1.2.5).
    validity = _sequence(_tlv(0x17, b"700101000000Z"), _tlv(0x18, b"99991231235959Z"))
    body = _sequence(
        _tlv(0xA0, _integer(2)),
        _integer(int.from_bytes(os.urandom(8), "big")),
        algorithm,
        subject,
        validity,
        subject,
        _sequence(_sequence(_EC_PUBLIC_KEY, _PRIME256V1), _bits(public)),
    )
    return _sequence(body, algorithm, _bits(_sign(secret, body)))


def _sign(secret: int, message: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    k = _scalar()
    r = _multiply(k, _G)[0] % _N
    s = pow(k, -1, _N) * (digest + r * secret) % _N
    return _sequence(_integer(r), _integer(s))


def _scalar() -> int:
    # 64 bits more than the order: what the remainder favours is less than can be seen.
    return 1 + int.from_bytes(os.urandom(40), "big") % (_N - 1)


def _multiply(factor: int, point: _Point) -> _Point:
    """``factor`` times ``point`` on P-256, for factors from 1 to the order less 1."""
    result: _Point | None = None
    while factor:
        if factor & 1:
            result = point if result is None else _add(result, point)
        point = _double(point)
        factor >>= 1
    assert result is not None
    return result


def _add(a: _Point, b: _Point) -> _Point:
    if a == b:
        return _double(a)
    slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, _P)
    x = (slope * slope - a[0] - b[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P


def _double(a: _Point) -> _Point:
    slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, _P)
    x = (slope * slope - 2 * a[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _bits(content: bytes) -> bytes:
    return _tlv(0x03, b"\0" + content)


def _pem(label: str, der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"
