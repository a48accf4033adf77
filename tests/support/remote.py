"""A gang's tasks on hosts of their own, started by the commands with which Metaflow's backends start them.

No backend takes part: a ``step`` command with a gang's ids and variables is all that one does for a node. The hosts
share the folder of the local datastore, as pods share a bucket, unless another datastore is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .flows import flow_environment
from .hosts import Account, Host, Hosts
from .processes import descendants, send_signal

START_S = 60.0
"""For tasks to start and join, on a machine that is busy with other tests."""

GONE_S = 10.0
"""For guards to end after their tasks; control's waits 5 s for nodes that it has lost."""

LOST_HOST_S = 9.0
"""``lost_host_timeout``, unless a test says otherwise."""

_CONTROL = "3"  # Its task id; those before it are the run's parameters and its start step.
_STEP = 0.02  # Files that grow raise no event that could be waited for.


@dataclass(frozen=True)
class Datastore:
    """A flow's datastore: Metaflow's name for its kind, its root, and the variables by which tasks reach it."""

    kind: str
    root: str
    env: Mapping[str, str] = field(default_factory=dict)


class RemoteTask:
    """One node's task in one attempt. ``output`` holds both of its streams, its guard's and its processes' too."""

    def __init__(
        self, host: Host, argv: list[str], env: Mapping[str, str], folder: Path, log: Path, user: str | None = None
    ) -> None:
        self.host, self._argv, self._log = host, argv, log
        with log.open("wb") as stream:
            self._process = host.popen(
                argv, env=env, cwd=folder, user=user, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether its own process is over."""
        return self._process.poll() is not None

    def dump(self) -> str:
        """Command, exit code and output, for an assertion's message."""
        return f"{' '.join(self._argv)}\non {self.host.name}, exit code {self._process.poll()}\n{self.output[-8000:]}"

    def wait(self, timeout: float) -> int:
        """Its exit code; AssertionError where it still runs after ``timeout`` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s: {self.dump()}") from None

    def ok(self, timeout: float = START_S) -> str:
        """Wait for its end, insist that it was a good one, and return the output."""
        assert self.wait(timeout) == 0, self.dump()
        return self.output

    def fails(self, timeout: float) -> str:
        """Wait for its end, insist that it failed with an exit code of its own, and return the output."""
        assert self.wait(timeout) > 0, self.dump()
        return self.output

    def wait_for(self, text: str | re.Pattern[str], timeout: float = START_S) -> re.Match[str]:
        """Wait for ``text``, or a match of the pattern, in the output; AssertionError where it does not come."""
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(text))
        deadline = time.monotonic() + timeout
        while True:
            ended = self._process.poll() is not None
            found = pattern.search(self.output)
            if found is not None:
                return found
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{pattern.pattern!r} did not appear: {self.dump()}")
            time.sleep(_STEP)

    def interrupt(self) -> None:
        """SIGINT to the command and all that it has started, as Ctrl-C sends it."""
        for process in descendants(self._process.pid):
            send_signal(process, signal.SIGINT)

    def kill(self, number: int = 9) -> None:
        """A signal to the task's own process, SIGKILL as the machine's out-of-memory killer sends it by default; its
        guard lives on.
        """
        (process, *_) = (p for p in descendants(self._process.pid) if p.command[:2] == tuple(self._argv[:2]))
        assert send_signal(process, number), self.dump()


def all_fail(
    tasks: Sequence[RemoteTask],
    since: float,
    timeout: float,
    what: str,
    may_crash: bool = False,
    may_end_well: Sequence[RemoteTask] = (),
) -> list[str]:
    """What they said, once all have failed, which they must before ``timeout`` seconds after ``since`` are over; by a
    signal only where they ``may_crash``; those that ``may_end_well`` need not fail. How long it took is printed, and
    shown by ``pytest -rP``.
    """
    said = []
    for task in tasks:
        code = task.wait(since + timeout - time.monotonic())
        assert code > 0 or (may_crash and code) or task in may_end_well, task.dump()
        print(f"{what}: {task.host.name} had ended after {time.monotonic() - since:.1f} s")
        said.append(task.output)
    return said


class RemoteGang:
    """The tasks of a ``num_nodes`` gang in the step ``work`` of a flow, each on the host of its index.

    Parameters
    ----------
    folder : path
        Where the flow, the datastore and the logs go; also the tasks' working folder.
    flow : str
        Source text. Its ``start`` step, which is really run, reads NODES from the environment.
    main : str, optional
        What the nodes are told of control's address; by default its number.
    account : Account, optional
        Whose tasks they are, root's by default. ``folder`` becomes theirs, and has to be where they may go.
    datastore : Datastore, optional
        By default a local one in ``folder``.
    """

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        flow: str,
        num_nodes: int,
        main: str = "",
        account: Account | None = None,
        datastore: Datastore | None = None,
    ) -> None:
        self.hosts, self.num_nodes, self.folder, self._account = hosts, num_nodes, folder, account
        self._datastore = datastore or Datastore("local", str(folder / "datastore"))
        self._main = main or hosts[0].address
        self._file = folder / "flow.py"
        self._file.write_text(textwrap.dedent(flow))
        self._name = re.findall(r"^class (\w+)\(FlowSpec\)", textwrap.dedent(flow), re.MULTILINE)[0]
        self._started: list[RemoteTask] = []
        self._gone: set[int] = set()
        for command in (
            "init --run-id 7 --task-id 1",
            "step start --run-id 7 --task-id 2 --input-paths 7/_parameters/1 --retry-count 0",
        ):
            hosts[0].run(self._command(command), env=self._environment(), cwd=folder, timeout=START_S)
        self._give(folder, *folder.rglob("*"))

    def _give(self, *paths: Path) -> None:
        if self._account is not None:
            for path in paths:
                os.chown(path, self._account.uid, self._account.uid, follow_symlinks=False)

    def _command(self, command: str) -> list[str]:
        where = ["--datastore", self._datastore.kind, "--datastore-root", self._datastore.root, "--metadata", "local"]
        return [sys.executable, str(self._file), "--quiet", "--no-pylint", *where, *command.split()]

    def _environment(self, **changes: str) -> dict[str, str]:
        root = str(self.folder / "datastore")
        usual = {"NODES": str(self.num_nodes), "METAFLOW_DATASTORE_SYSROOT_LOCAL": root, "PYTHONUNBUFFERED": "1"}
        return flow_environment({**usual, **self._datastore.env, **changes})

    def start(self, node: int, on: int | None = None, attempt: int = 0, **env: str) -> RemoteTask:
        """Start the task of ``node`` on the host ``on``, its own by default, with ``env`` besides."""
        host = self.hosts[node if on is None else on]
        task = _CONTROL if node == 0 else f"{_CONTROL}-node-{node}"
        temporary = self.folder / "tmp" / host.name
        temporary.mkdir(parents=True, exist_ok=True)
        command = (
            f"step work --run-id 7 --task-id {task} --input-paths 7/start/2 --split-index {node} "
            f"--retry-count {attempt} --max-user-code-retries 1 --ubf-context {'ubf_task' if node else 'ubf_control'}"
        )
        backends = {
            "METAFLOW_RUNTIME_ENVIRONMENT": "kubernetes",
            "MF_PARALLEL_MAIN_IP": self._main,
            "MF_PARALLEL_NUM_NODES": str(self.num_nodes),
            "MF_PARALLEL_NODE_INDEX": str(node),
            "MF_PARALLEL_CONTROL_TASK_ID": _CONTROL,
            "MF_PATHSPEC": f"{self._name}/7/work/{task}",
            "MF_DATASTORE": self._datastore.kind,
            "MF_DATASTORE_ROOT": self._datastore.root,
            "MF_ATTEMPT": str(attempt),
            "TMPDIR": str(temporary),
            # A host that is cut off is to be told while a test waits for it.
            "METAFLOW_GANG_LOST_HOST_TIMEOUT": f"{LOST_HOST_S:g}",
        }
        environment = self._environment(**{**backends, **env})
        log = self.folder / f"task-{len(self._started)}.log"
        user = None
        if self._account is not None:
            user = self._account.name
            environment |= {"HOME": str(self._account.home), "METAFLOW_HOME": str(self.folder / "home")}
            environment.pop("COVERAGE_PROCESS_CONFIG", None)  # another user cannot write down which lines it ran
            self._give(temporary.parent, temporary)
        started = RemoteTask(host, self._command(command), environment, self.folder, log, user)
        self._started.append(started)
        return started

    def start_all(self, attempt: int = 0, **env: str) -> list[RemoteTask]:
        """Start every node's task on its own host."""
        return [self.start(node, attempt=attempt, **env) for node in range(self.num_nodes)]

    def kill_host(self, index: int) -> None:
        """End a host with all that runs on it, as a loss of power does; nobody is left to tidy it."""
        self.hosts.kill(index)
        self._gone.add(index)

    def meeting(self, attempt: int = 0) -> bytes:
        """The object in the datastore by which the nodes find each other; empty where there is none."""
        found = (self.folder / "datastore" / "mf.gang").glob(f"*/7/work/{_CONTROL}/{attempt}")
        return b"".join(path.read_bytes() for path in found)

    def wait_until_gone(self) -> None:
        """Insist that every host is as it was before, in a moment: no process, no private folder."""
        live = [self.hosts[index] for index in range(len(self.hosts)) if index not in self._gone]
        deadline = time.monotonic() + GONE_S
        while (left := self._remains(live)) and time.monotonic() < deadline:
            time.sleep(_STEP)
        assert not left, f"left on hosts that live: {'; '.join(left)}"

    def _remains(self, hosts: list[Host]) -> list[str]:
        lines = [f"{process} on {host.name}" for host in hosts for process in host.processes()]
        for host in hosts:
            base = self.folder / "tmp" / host.name
            lines += [str(path) for path in base.glob("metaflow-gang-*/gangs/*")]
        return lines


@contextlib.contextmanager
def remote_gang(
    folder: Path,
    flow: str,
    num_nodes: int,
    hosts: int | None = None,
    main: str = "",
    account: Account | None = None,
) -> Iterator[RemoteGang]:
    """Hosts, ``num_nodes`` of them by default, and a gang for them; what the gang leaves behind is a failure."""
    accounts = () if account is None else (account,)
    with Hosts(num_nodes if hosts is None else hosts, accounts=accounts) as machines:
        gang = RemoteGang(machines, folder, flow, num_nodes, main, account)
        yield gang
        gang.wait_until_gone()
