"""Values of variables that are named like secrets, which no log, metadata or card may have."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Mapping

HIDDEN = "***"
"""Stands for a secret."""

SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.I)

SHORTEST = 6
"""Characters; what is shorter stands in any text."""


def without_secrets(text: str, environ: Mapping[str, str], name: str = "") -> str:
    """``text``, the value of the variable ``name`` if it is one's, where the values of variables that are named like
    secrets are replaced.
    """
    if name and SECRET_NAME.search(name):
        return HIDDEN
    secrets = {value for key, value in environ.items() if len(value) >= SHORTEST and SECRET_NAME.search(key)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
