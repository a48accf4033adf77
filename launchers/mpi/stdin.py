"""The stdin of rank 0: a file, or bytes, of the user's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from ...core.exceptions import BadAttribute

Stdin = str | os.PathLike[str] | bytes | None


def check_stdin(stdin: Stdin) -> None:
    """Raise BadAttribute where ``stdin`` is neither bytes nor the path of something that can be read."""
    if stdin is None or isinstance(stdin, bytes):
        return
    if not isinstance(stdin, str | os.PathLike):
        raise BadAttribute(
            f"stdin is a {type(stdin).__name__}: give the path of a file, or its content as bytes (text.encode())."
        )
    path = os.path.abspath(os.fsdecode(stdin))
    if os.path.isdir(path) or not os.path.exists(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        raise BadAttribute(
            f"stdin: {path} {what}. Give the path of a file of this node, or its content as bytes (text.encode())."
        )
    if not os.access(path, os.R_OK):
        raise BadAttribute(f"stdin: {path} cannot be read by this task's user.")


@contextlib.contextmanager
def as_file(stdin: Stdin, folder: str) -> Iterator[str]:
    """The absolute path of ``stdin``, "" for none; bytes are in a file of the private ``folder`` meanwhile."""
    if isinstance(stdin, bytes):
        with tempfile.NamedTemporaryFile(dir=folder, prefix="stdin-") as file:
            file.write(stdin)
            file.flush()
            yield file.name
    else:
        yield "" if stdin is None else os.path.abspath(os.fsdecode(stdin))
