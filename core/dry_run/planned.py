"""What one node would start in a call, as text without secrets."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..guard.secret_values import without_secrets


class Command(Protocol):
    """What is shown of a process: see :class:`core.gang.launch_plan.Process`."""

    @property
    def argv(self) -> tuple[str, ...]: ...

    @property
    def env(self) -> Mapping[str, str]: ...

    @property
    def cwd(self) -> str | None: ...

    @property
    def title(self) -> str: ...


def in_shell(word: str) -> str:
    """A word as a shell reads it, on one line: ``$'...'`` where it has a line break or another control character."""
    if word.isprintable():
        return shlex.quote(word)
    parts = [f"\\x{ord(one):02x}" if one in "'\\" or ord(one) < 32 else one for one in word]
    return f"$'{''.join(parts).replace(chr(92) + 'x0a', chr(92) + 'n')}'"


class Planned:
    """What one node would start in a call, as lines of text without secrets.

    Parameters
    ----------
    environ : mapping
        The task's environment: only what differs from it is shown.

    Attributes
    ----------
    lines : list of str
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self.lines: list[str] = []

    def add_processes(self, processes: Sequence[Command]) -> None:
        """Add the processes of a plan; those that have one command line are shown together."""
        alike: dict[tuple[tuple[str, ...], str | None], list[Command]] = {}
        for process in processes:
            alike.setdefault((process.argv, process.cwd), []).append(process)
        for (argv, cwd), group in alike.items():
            common = dict(set.intersection(*(set(process.env.items()) for process in group)))
            removed = set(self._environ).difference(*(process.env for process in group))
            self.add_command(", ".join(process.title for process in group), argv, common, cwd, removed)
            for process in group if len(group) > 1 else ():
                own = {name: value for name, value in process.env.items() if common.get(name) != value}
                self.lines.append(f"    environment of {process.title}: {self._assignments(own)}")

    def add_command(
        self,
        title: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None = None,
        removed: set[str] | frozenset[str] = frozenset(),
    ) -> None:
        """Add one command.

        Parameters
        ----------
        title : str
            What it is: "rank 3", "each rank".
        env : mapping
            Its environment; of it what the task's own has as well is left out.
        cwd : str, optional
            Its working folder, where that is not the task's.
        removed : set of str
            Variables of the task's environment that it does not get.
        """
        environ = {**self._environ, **env}
        self.lines.append(f"  {without_secrets(title, environ)}")
        if cwd is not None and cwd != os.getcwd():
            self.lines.append(f"    folder: {cwd}")
        self.lines.append(f"    argv: {' '.join(in_shell(without_secrets(word, environ)) for word in argv)}")
        self.lines.append(f"    environment: {self._assignments(env)}")
        if removed:
            self.lines.append(f"    without: {' '.join(sorted(removed))}")

    def add_file(self, title: str, text: str) -> None:
        """Add a file that a command reads, such as a hostfile."""
        self.lines.append(f"  {title}")
        self.lines += [f"    | {line}" for line in without_secrets(text, self._environ).splitlines()]

    def add_port(self, port: int, node: int) -> None:
        """Add the port on which ranks meet."""
        self.lines.append(f"  port {port} of node {node}")

    def add_waiting(self, is_spare: bool) -> None:
        """Add that the node has no ranks: it waits as a spare one, or is left out."""
        self.lines.append("  no ranks: it waits as a spare node" if is_spare else "  no ranks: it is left out")

    def _assignments(self, env: Mapping[str, str]) -> str:
        """What ``env`` adds to the task's environment or changes in it, as a shell reads it."""
        environ = {**self._environ, **env}
        changed = {name: value for name, value in sorted(env.items()) if self._environ.get(name) != value}
        return " ".join(f"{name}={in_shell(without_secrets(value, environ, name))}" for name, value in changed.items())
