"""A real Slurm: munged, slurmctld and a slurmd for each node, on hosts of their own, with all files in one folder.

No service of this machine takes part: the daemons run in the foreground, with their own configuration, key and socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..hosts import Host, Hosts
from ..processes import descendants, send_signal, wait_gone
from ..requirements import missing, require_tool

READY_S = 60.0
"""For all nodes to be idle; it takes 2 s on a machine that is not busy."""

END_S = 20.0
"""For a daemon to end after a SIGTERM, and for the nodes to be idle after their jobs' end."""

LOW, HIGH, SHORT = "low", "high", "short"
"""Partitions, of all nodes: the default one, one whose jobs preempt those of the default, and one of a minute."""

GRACE_S = 20
"""What a preempted job gets between SIGTERM and SIGKILL."""

LOST_NODE_S = 10
"""SlurmdTimeout: a node that has not answered for so long is down."""

_STEP_S = 0.05
_LOG_END = 3000  # characters of each daemon's log that a message shows

# The scheduler's pauses are made short: by default a job may wait a minute for the next look at the queue.
# BatchStartTimeout is 10 s by default, after which a busy machine's node counts as lost.
_CONFIGURATION = """
ClusterName=gang
SlurmctldHost=gang0
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
ReturnToService=2
SlurmdTimeout={lost_node_s}
SlurmctldTimeout=10
BatchStartTimeout=120
KillWait=10
BatchStartTimeout=60
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName=gang[1-{nodes}] CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime={grace_s} PreemptMode=CANCEL
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=1 PriorityTier=1 PreemptMode=OFF
"""

_BY_PARENTS = """
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectTypeParameters=CR_Core
"""

_BY_CGROUPS = """
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=1000
"""

_CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
"""

_CONTROLLERS = [Path("/sys/fs/cgroup", name) for name in ("freezer", "memory", "cpuset", "cpuacct", "devices")]


class Daemon:
    """One of Slurm's, in the foreground of a host."""

    def __init__(self, host: Host, argv: Sequence[str], env: Mapping[str, str], output: Path) -> None:
        self.name = f"{argv[0]} on {host.name}"
        with output.open("ab") as stream:
            self._process = host.popen(
                argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def end(self, number: int = signal.SIGTERM) -> None:
        """Signal it, and wait until it is gone; AssertionError where it is not. Jobs that it has started go on."""
        # The process here is nsenter's, and the daemon the first that it has started.
        for process in descendants(self._process.pid)[:1]:
            send_signal(process, number)
            assert not wait_gone([process.pid], END_S), f"{self.name} is still there {END_S:g} s after signal {number}"
        self._process.wait(END_S)


class Slurm:
    """``with Slurm(3) as slurm``: hosts[0] is the login node and runs the controller, hosts[1] to hosts[3] are nodes.

    Parameters
    ----------
    nodes : int
        How many, gang1 to gangN.
    cpus : int
        Of each node, as Slurm counts them.
    others : int
        Hosts besides, on which Slurm does not run: they come last.
    cgroups : bool
        Whether nodes keep jobs in control groups, and so within their memory. Of version 1 only: skips elsewhere.
    settings : str
        More lines of slurm.conf.

    Attributes
    ----------
    hosts : Hosts
    folder : path
        Where all files of Slurm lie while it runs, state, logs and key included.
    env : dict
        For Slurm's commands, on any host.
    ready_s : float
        How long the start took.
    """

    def __init__(self, nodes: int, cpus: int = 2, others: int = 0, cgroups: bool = False, settings: str = "") -> None:
        self.nodes = range(1, nodes + 1)
        # The steps of jobs have sockets below it, whose paths may have 107 characters: a test's own folder is too long.
        self._folder = tempfile.TemporaryDirectory(prefix="slurm-")
        self.folder = folder = Path(self._folder.name)
        self.hosts = Hosts(1 + nodes + others)
        self.ready_s = 0.0
        self._cgroups = cgroups
        known = {"nodes": nodes, "cpus": cpus, "grace_s": GRACE_S, "lost_node_s": LOST_NODE_S, "folder": folder}
        configuration = _CONFIGURATION.format(**known) + (_BY_CGROUPS if cgroups else _BY_PARENTS) + settings
        self._files = {"slurm.conf": configuration, "cgroup.conf": _CGROUPS if cgroups else ""}
        self.env = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        }
        self._daemons: dict[str, Daemon] = {}
        self._close = contextlib.ExitStack()

    def __enter__(self) -> Slurm:
        for tool, package in (("munged", "munge"), ("slurmctld", ""), ("slurmd", ""), ("sbatch", "slurm-client")):
            require_tool(tool, package or tool)
        if self._cgroups and not all((path / "tasks").exists() for path in _CONTROLLERS):
            missing("This machine has no control groups of version 1.")
        since = time.monotonic()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._folder)
            undo.callback(self._remove_cgroups)
            undo.enter_context(self.hosts)
            self._write_files()
            self._start_munged()
            self.start_controller()
            for node in self.nodes:
                # A job begins with a login shell; what this machine's account has for one may take a minute.
                self.hosts[node].run(["mount", "--bind", str(self.folder / "passwd"), "/etc/passwd"])
                self.start_node(node)
            self.wait_idle(READY_S)
            self._close = undo.pop_all()
        self.ready_s = time.monotonic() - since
        return self

    def __exit__(self, *exception: object) -> None:
        # The hosts take their processes with them: daemons, jobs, and what those have left.
        self._close.close()

    def _write_files(self) -> None:
        for name in ("munge", "state", "home"):
            (self.folder / name).mkdir(parents=True)
        root = f"root:x:0:0:root:{self.folder}/home:/bin/bash"
        (self.folder / "passwd").write_text(re.sub("^root:.*", root, Path("/etc/passwd").read_text(), flags=re.M))
        self.folder.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for name, text in self._files.items():
            (self.folder / name).write_text(text)

    def _remove_cgroups(self) -> None:
        """What slurmd leaves of its control groups, which have no processes any more."""
        for controller in _CONTROLLERS if self._cgroups else ():
            for top in controller.glob("slurm*"):
                for folder, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)

    def _start(self, host: Host, *argv: str, **env: str) -> Daemon:
        daemon = Daemon(host, argv, {**self.env, **env}, self.folder / f"{argv[0]}-{host.name}.out")
        self._daemons[daemon.name] = daemon
        return daemon

    def _start_munged(self) -> None:
        munge = self.folder / "munge"
        places = [f"--{what}={munge / name}" for what, name in (("key-file", "key"), ("socket", "socket"))]
        files = [f"--{what}-file={munge}/munged.{what}" for what in ("pid", "log", "seed")]
        # One is enough for all hosts: they reach its socket in the file system.
        self._start(self.hosts[0], "munged", "--foreground", "--force", *places, *files)
        self._wait(lambda: (munge / "socket").exists(), READY_S, "munged has no socket")

    def start_controller(self) -> Daemon:
        """Start slurmctld, which goes on from the state that an earlier one has saved.

        A controller saves a change within 5 s, and at its end by SIGTERM: one that is killed may forget jobs.
        """
        return self._start(self.hosts[0], "slurmctld", "-D")

    def start_node(self, node: int) -> Daemon:
        """Start the slurmd of a node."""
        return self._start(self.hosts[node], "slurmd", "-D", "-N", self.hosts[node].name)

    def start_rest(self, where: str, *options: str, **env: str) -> Daemon:
        """Start slurmrestd beside the controller, on ``unix:PATH`` or ``ADDRESS:PORT``, and wait until it listens."""
        daemon = self._start(self.hosts[0], "slurmrestd", *options, "-s", "openapi/v0.0.38", where, **env)
        kind, name = ("-xl", where.removeprefix("unix:")) if where.startswith("unix:") else ("-tln", where)
        self._wait(lambda: name in self.run("ss", kind, check=False), READY_S, "slurmrestd does not listen")
        return daemon

    @property
    def controller(self) -> Daemon:
        """The slurmctld that was started last."""
        return self._daemons["slurmctld on gang0"]

    def run(self, *argv: str, on: int = 0, check: bool = True, timeout: float = 60.0) -> str:
        """Run a command, and return its output, with what it has written to stderr where it may fail."""
        done = self.hosts[on].run(argv, env=self.env, cwd=self.folder, check=check, timeout=timeout)
        return done.stdout if check else done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """The state of each node as sinfo has it ("idle", "mixed", "drained", "down*"); empty where no one answers."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return {words[0]: words[1] for words in map(str.split, lines) if len(words) == 2}

    def wait_idle(self, timeout: float = END_S, nodes: int | None = None) -> None:
        """Wait until this many nodes are idle, all by default: nothing of any job is left on them."""
        wanted = len(self.nodes) if nodes is None else nodes
        self._wait(lambda: list(self.states().values()).count("idle") >= wanted, timeout, "the nodes are not idle")

    def jobs(self, *states: str) -> list[str]:
        """The numbers of the jobs that Slurm has, in these states ("RUNNING", "PENDING")."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return self.run("squeue", "--noheader", "--format=%A", *chosen).split()

    def elements(self, state: str) -> list[str]:
        """The jobs in this state, those of arrays as ARRAY_INDEX."""
        return self.run("squeue", "--noheader", "--array", "--format=%i", f"--states={state}").split()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, as ``scontrol show job`` names it; empty where it knows, or says, nothing."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", number, check=False)))

    def wait_job(self, number: str, *states: str, timeout: float = 60.0) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        self._wait(
            lambda: self.job(number).get("JobState") in states, timeout, f"job {number} is not {' or '.join(states)}"
        )
        return self.job(number)

    def left(self) -> list[str]:
        """What runs on the nodes besides their daemons; nothing on one that was killed."""
        own = ("slurmd", "nsenter")
        living = [self.hosts[node] for node in self.nodes if os.path.exists(f"/proc/{self.hosts[node].pid}/ns")]
        return [
            f"{process} on {host.name}"
            for host in living
            for process in host.processes()
            if not process.command or os.path.basename(process.command[0]) not in own
        ]

    def _wait(self, is_so: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not is_so():
            ended = [daemon.name for daemon in self._daemons.values() if daemon.has_ended]
            if time.monotonic() > deadline or (ended and not self.ready_s):
                raise AssertionError(f"{what}; ended: {', '.join(ended) or 'no daemon'}\n{self.logs()}")
            time.sleep(_STEP_S)

    def logs(self) -> str:
        """The end of what each daemon has written, and the queue."""
        return "".join(self._logs())

    def _logs(self) -> Iterator[str]:
        for command in ("sinfo", "squeue"):
            with contextlib.suppress(Exception):
                yield f"--- {command}\n" + self.run(command, check=False, timeout=20)
        for path in sorted(self.folder.glob("*.out"), reverse=True):
            yield f"--- {path.name}\n{path.read_text(errors='replace')[-_LOG_END:]}\n"
