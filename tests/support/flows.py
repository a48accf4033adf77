"""Flows as people run them: ``python flow.py run`` in a process of its own, watched, and looked into afterwards."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from .leaks import DEADLINE
from .trees import Tree


def flow_environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment with ``changes``, of which None removes a variable.

    conftest.py has pointed Metaflow at folders of the session's own; a gang's variables are never inherited.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MF_", "METAFLOW_GANG_"))}
    for name, value in (changes or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def without_gzip(output: str) -> str:
    """Python 3.13 shows, at the end of a run, that Metaflow's code package closes its file before its compressor."""
    noise = r"Exception ignored .*gzip.*\n(?:.*\n){0,8}?.*I/O operation on closed file\.\n"
    return re.sub(noise, "", output)


class FlowRun(Tree):
    """One ``run`` (or another command) of a flow file. See :class:`Tree` for its output and its end.

    Parameters
    ----------
    file : path
        The flow.
    arguments : str
        What follows ``run`` on the command line.
    folder : path
        Working folder, and where the run's id is kept.
    env : mapping, optional
        Changes to the environment; None as a value removes the variable.
    options : sequence of str
        Metaflow's options before the command, e.g. ``("--datastore", "s3")``.
    command : str
        "run" or "resume".
    python : sequence of str
        What starts the flow file.
    """

    def __init__(
        self,
        file: Path,
        *arguments: str,
        folder: Path,
        env: Mapping[str, str | None] | None = None,
        options: tuple[str, ...] = (),
        command: str = "run",
        python: tuple[str, ...] = (sys.executable,),
    ) -> None:
        self.file, self.folder = file, folder
        self._id_file = folder / "run-id"
        self._flow = re.findall(r"^class (\w+)\(FlowSpec\)", file.read_text(), re.MULTILINE)[-1]
        super().__init__(
            [*python, str(file), *options, command, "--run-id-file", str(self._id_file), *arguments],
            env=flow_environment(env),
            cwd=folder,
        )

    def ok(self, timeout: float) -> FlowRun:
        """Wait for the end, and insist that the run succeeded."""
        code = self.wait(timeout)
        assert code == 0, self.dump()
        return self

    def fails(self, timeout: float) -> str:
        """Wait for the end, insist that the run failed with an exit code of its own, and return all output."""
        code = self.wait(timeout)
        assert code > 0, f"expected a failure, not exit code {code}: {self.dump()}"
        return self.output

    @property
    def run_id(self) -> str:
        """Known once the run has started its first task."""
        return self._id_file.read_text().strip()

    def tasks(self, step: str, control: str | None = None) -> dict[int, int]:
        """Pids of a gang's running tasks by node index; ``control``, a task id, picks one of several gangs."""
        found: dict[int, int] = {}
        for process in self.below():
            options = _step_options(process.command, step)
            if options is None:
                continue
            task = options.get("--task-id", "")
            if control is not None and task != control and not task.startswith(f"{control}_node_"):
                continue
            index = 0 if options.get("--ubf-context") == "ubf_control" else int(options.get("--split-index", 0))
            if index in found:
                raise AssertionError(f"two tasks of {step} have node index {index}: say which control task is meant")
            found[index] = process.pid
        return found

    def client(self) -> Any:
        """The run as Metaflow's client shows it."""
        import metaflow

        metaflow.namespace(None)
        return metaflow.Run(f"{self._flow}/{self.run_id}")

    def artifact(self, step: str, name: str) -> Any:
        """An artifact of a step's (first) task."""
        return self.client()[step].task[name].data

    def node_tasks(self, step: str) -> dict[int, Any]:
        """The client's tasks of a gang's step by node index."""
        found = {}
        for task in self.client()[step].tasks():
            match = re.search(r"_node_(\d+)$", task.id)
            found[int(match.group(1)) if match else 0] = task
        return found

    def node_log(self, step: str, node: int, stream: str = "stdout") -> str:
        """What one node's own task has as its log."""
        return str(getattr(self.node_tasks(step)[node], stream))


def cards(folder: Path) -> list[str]:
    """The pages of the gangs' cards in the local datastore, below the folder of a run."""
    return [path.read_text() for path in folder.rglob("gang-*.html")]


def data_of(page: str) -> dict[str, Any]:
    """The snapshot in the page of a card."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def _step_options(command: tuple[str, ...], step: str) -> dict[str, str] | None:
    """The options of ``flow.py step NAME --option value ...`` where the command is one for this step."""
    for at, word in enumerate(command[:-1]):
        if word == "step" and command[at + 1] == step:
            rest = command[at + 2 :]
            return {name: value for name, value in itertools.pairwise(rest) if name.startswith("--")}
    return None


class FlowRunner:
    """Starts flows in folders of their own, and ends whatever of them is left when the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: list[FlowRun] = []

    def __call__(
        self,
        flow: str | Path,
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        options: tuple[str, ...] = (),
        command: str = "run",
        python: tuple[str, ...] = (sys.executable,),
        files: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> FlowRun:
        """Start a flow: a file where it lies, or source text that becomes ``flow.py`` in the run's folder.

        ``files`` are written beside it, name to text. ``folder`` shares an earlier run's working folder.
        """
        if folder is None:
            folder = self.folder / f"run{len(self._runs)}"
            folder.mkdir()
        for name, text in (files or {}).items():
            (folder / name).write_text(textwrap.dedent(text))
        if isinstance(flow, str):
            file = folder / "flow.py"
            file.write_text(textwrap.dedent(flow))
        else:
            file = flow.resolve()
        run = FlowRun(file, *arguments, folder=folder, env=env, options=options, command=command, python=python)
        self._runs.append(run)
        return run

    def close(self) -> None:
        """Kill what runs. Fails for a run that had ended and yet left processes: those are leaks."""
        leaks: list[str] = []
        try:
            for run in self._runs:
                if run.exit_code is not None:
                    leaks += [f"{run.file.name} left {process}" for process in run.left(DEADLINE)]
        finally:
            for run in self._runs:
                run.close()
        if leaks:
            pytest.fail(f"still running {DEADLINE:g} s after the run's end:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def flow_run(tmp_path: Path) -> Iterator[FlowRunner]:
    """Call it with a flow (source text or a path) and the arguments of ``run``; gives a :class:`FlowRun`."""
    runner = FlowRunner(tmp_path)
    try:
        yield runner
    finally:
        runner.close()
