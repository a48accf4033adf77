"""A login node over SSH, by the OpenSSH client and the user's own configuration of it."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
import tempfile
from collections.abc import Mapping, Sequence

from ..exceptions import SlurmDoesNotAnswer, SlurmException
from .machine import Machine

KEEP_S = 60
"""How long the connection, which all commands of this user share, stays open after the last command."""

LONGEST_FOLDER = 48
"""Bytes of the path to the connection's socket: a socket's has 107 at most, of which ssh takes 58 for its name."""


class LoginNode(Machine):
    """Another machine, on which Slurm's commands and the job's folder are."""

    look_s = 2.0

    def __init__(self, login: str) -> None:
        self.where = login
        own = f"metaflow-slurm-{os.getuid()}"
        sockets = os.path.join(tempfile.gettempdir(), own)
        if len(os.fsencode(sockets)) > LONGEST_FOLDER:
            sockets = os.path.join("/tmp", own)
        os.makedirs(sockets, mode=0o700, exist_ok=True)
        if os.stat(sockets).st_uid != os.getuid():
            raise SlurmException(f"{sockets} is another user's: set TMPDIR to a folder of your own.")
        self.prefix = (
            "ssh",
            "-oBatchMode=yes",
            "-oControlMaster=auto",
            f"-oControlPath={sockets}/%C",
            f"-oControlPersist={KEEP_S}",
            "-oServerAliveInterval=15",
            login,
        )

    def quoted(self, argv: Sequence[str]) -> list[str]:
        return ["--", shlex.join(argv)]

    def _output(self, argv: Sequence[str], input: bytes = b"") -> bytes:
        status, output, complaint = self.run(argv, input)
        if status == 255:  # of ssh itself
            raise SlurmDoesNotAnswer(f"ssh {self.where}: {complaint}")
        if status:
            raise SlurmException(f"{argv[0]} on {self.where}: {complaint or f'exit status {status}'}")
        return output

    def has(self, path: str) -> bool:
        status, _, complaint = self.run(["test", "-e", path])
        if status == 255:
            raise SlurmDoesNotAnswer(f"ssh {self.where}: {complaint}")
        return status == 0

    def home(self) -> str:
        return self._output(["sh", "-c", 'echo "$HOME"']).decode().strip()

    def make_folder(self, folder: str, files: Mapping[str, bytes]) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                tar.addfile(entry, io.BytesIO(content))
        script = 'rm -rf -- "$1" && mkdir -p -- "$1" && chmod 700 -- "$1" && tar -x --no-same-owner -C "$1"'
        self._output(["sh", "-c", script, "sh", folder], archive.getvalue())

    def touch(self, path: str) -> None:
        self.run(["touch", path])

    def names(self, folder: str) -> list[str]:
        status, output, _ = self.run(["ls", folder])
        return output.decode().split() if status == 0 else []

    def read(self, path: str, start: int = 0) -> bytes:
        status, output, _ = self.run(["tail", "-c", f"+{start + 1}", path])
        return output if status == 0 else b""

    def remove(self, folder: str) -> None:
        self.run(["rm", "-rf", "--", folder])
