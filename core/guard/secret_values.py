"""Values of variables that are named like secrets, which no log, metadata, card or metric may have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""Stands for a secret."""

SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|(?:^|_)PASS(?:_|$)|CREDENTIAL|KEYS?(?:_|$)|AUTH|^OTEL_\w*HEADERS$", re.I
)

MODE_NAME = re.compile(r"AUTH(?:ENTICATION|ORIZATION)?_(?:MODE|METHOD|TYPE)$", re.I)
"""Says how somebody proves who they are, not with what, if the rest of the name is not a secret's."""

MODE_WORD = re.compile(r"[a-z]{1,20}", re.I)

SHORTEST = 6
"""Characters; what is shorter stands in any text."""


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is named like a secret; ``RAY_AUTH_MODE=token`` is none, as its value is a plain word."""
    if MODE_WORD.fullmatch(value):
        name = MODE_NAME.sub("", name)
    return SECRET_NAME.search(name) is not None


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values that are secrets, the longest first. Of headers (``name=value,name=value``) each value is one too."""
    found = set()
    for name, value in environ.items():
        if is_secret(name, value):
            found.add(value)
            if name.upper().endswith("HEADERS"):
                found.update(pair.partition("=")[2].strip() for pair in value.split(","))
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def without_secrets(text: str, environ: Mapping[str, str], name: str = "") -> str:
    """``text``, the value of the variable ``name`` if it is one's, where the values of variables that are named like
    secrets are replaced.
    """
    if name and is_secret(name, text):
        return HIDDEN
    return str(cleaned(text, secrets_of(environ)))


def cleaned(value: Any, secrets: Sequence[str]) -> Any:
    """``value``, as JSON has it, where each text in it is one without ``secrets``."""
    if not secrets:
        return value
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {name: cleaned(inner, secrets) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(inner, secrets) for inner in value]
    return value
