"""``current.mpi``: mpirun over the nodes of the gang, the compiler, and files for all nodes."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from ...core.attributes import check_variables
from ...core.calls.broadcast_file import broadcast_file
from ...core.calls.misplaced_arguments import suggesting
from ...core.dry_run.call import show_instead
from ...core.exceptions import BadAttribute, ProcessFailed
from ...core.gang.gang import Gang
from ...core.gang.launch_plan import LaunchPlan, Process
from ...core.gang.restarts import NO_RESTARTS, RestartPolicy
from ...core.gang.tries import Again, Tries
from ...core.logs import say
from ...core.remote_shell.channel import ChannelShell
from ...core.settings.table import DRY_RUN
from .exceptions import explain
from .plan import Site, clean_environment, given, is_elsewhere, own_arguments, plan
from .program import Arguments, program_argv, script_of, to_argv, under_mpi
from .rank import USERS_TMPDIR
from .start import LEFT, check_program, started
from .stdin import Stdin, as_file, check_stdin

MPIRUN_OPTIONS = (
    "n",
    "np",
    "c",
    "hostfile",
    "machinefile",
    "host",
    "hosts",
    "f",
    "ppn",
    "x",
    "mca",
    "bind_to",
    "map_by",
)
"""mpirun's most common options, for those who give one to ``run()`` itself."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class MPIExecutor:
    """``current.mpi`` in an ``@mpi`` step, whose body runs on node 0 while the other nodes wait.

    Parameters
    ----------
    hosts : tuple of str
        The other nodes' addresses, by node index.
    hostfile : str
        A hostfile with all nodes and their slots, in the form of the MPI that is used.
    slots : tuple of int
        How many ranks each node takes, by node index.
    transport : str
        How mpirun starts its daemons on other nodes: "ssh", "channel", or "" where all nodes are this machine.
    _devices : str
        CUDA_VISIBLE_DEVICES of the ranks, all nodes' shares together, where one machine's GPUs are shared out.
    """

    hosts: tuple[str, ...]
    hostfile: str
    slots: tuple[int, ...]
    transport: str
    _gang: Gang
    _channel: ChannelShell | None
    _site: Site
    _before: Mapping[str, str]
    _devices: str
    _policy: RestartPolicy = NO_RESTARTS
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @suggesting("current.mpi.run", {"args": MPIRUN_OPTIONS, "program_args": ()})
    def run(
        self,
        args: Arguments = None,
        program: Arguments | os.PathLike[str] = None,
        program_args: Arguments = None,
        env: Mapping[str, str] | None = None,
        stdin: Stdin = None,
        dry_run: bool = False,
    ) -> None:
        """Run ``program`` by mpirun, and wait for it.

        Parameters
        ----------
        args : str, list or dict, optional
            mpirun's own arguments, such as ``["-n", "4"]``. What they leave open is filled in: the hostfile, how to
            reach the other nodes, one rank for each slot.
        program : str, path or list
            What each rank runs: "python train.py", or ["./simulate", "--fast"]. Python runs in such a way that an
            exception on one rank ends all.
        program_args : str, list or dict, optional
            The program's arguments.
        env : dict, optional
            Variables for all ranks. What the body has changed in ``os.environ`` reaches all of them as well.
        stdin : path or bytes, optional
            A file of this node, or its content, that rank 0, which has to run here, gets as its stdin. Otherwise its
            stdin is empty, as the others' always is.
        dry_run : bool
            Whether what would start is only shown, in the log of this node (docs/dry-runs.md). Nothing starts.

        Raises
        ------
        BadAttribute
            An argument that is not valid. Nothing was started.
        MpiException
            A rank, or mpirun itself, has failed.
        GangFailed
            Another node was lost.

        Example
        -------
        ``current.mpi.run(args=["-n", "8"], program="python train.py", program_args={"epochs": 3})``
        """
        self._run("mpirun", args, program, program_args, env, stdin, dry_run)

    @suggesting("current.mpi.exec", {"args": MPIRUN_OPTIONS, "program_args": ()})
    def exec(
        self,
        args: Arguments = None,
        program: Arguments | os.PathLike[str] = None,
        program_args: Arguments = None,
        env: Mapping[str, str] | None = None,
        stdin: Stdin = None,
        dry_run: bool = False,
    ) -> None:
        """As :meth:`run`, by mpiexec."""
        self._run("mpiexec", args, program, program_args, env, stdin, dry_run)

    def cc(self, args: Arguments = None) -> None:
        """Compile C by this MPI's compiler on this node; :meth:`broadcast_file` brings the program to the others.

        Parameters
        ----------
        args : str or list
            The compiler's arguments.

        Raises
        ------
        BadAttribute
            There are no arguments.
        ToolMissing
            This MPI has no compiler.
        MpiException
            It failed; the message has its output.

        Example
        -------
        ``current.mpi.cc(["-O2", "-o", "pi", "pi.c"])``
        """
        argv = to_argv(args, "args")
        if not argv:
            raise BadAttribute("current.mpi.cc() needs the compiler's arguments, such as ['-o', 'pi', 'pi.c'].")
        compiler = self._site.flavour.program("mpicc")
        say(shlex.join(["mpicc", *argv]))
        process = Process((compiler, *argv), clean_environment(os.environ), os.getcwd(), title="mpicc")
        self._launch(LaunchPlan((process,)), shlex.join(argv))

    def broadcast_file(self, filename: str | os.PathLike[str], to: str | os.PathLike[str] | None = None) -> None:
        """Copy a file of this node to all others, whole or not at all.

        Parameters
        ----------
        filename : path
            A relative one is looked for in the working folder.
        to : path, optional
            Where it goes on every node; the same path by default. A relative one is below each node's working folder.

        Raises
        ------
        BadAttribute
            There is no such file.
        BroadcastFailed
            A node could not be reached, or could not store it; the message names it. The others have it.

        Example
        -------
        ``current.mpi.broadcast_file("pi")``
        """
        if DRY_RUN.read():
            say(f"Dry run (METAFLOW_GANG_DRY_RUN): {os.fspath(filename)} is not copied to the other nodes.")
        else:
            broadcast_file(self._gang, self._channel, filename, to)

    def _run(
        self,
        binary: str,
        args: Arguments,
        program: Arguments | os.PathLike[str],
        program_args: Arguments,
        env: Mapping[str, str] | None,
        stdin: Stdin,
        dry_run: bool,
    ) -> None:
        check_variables("current.mpi.run", env)
        check_stdin(stdin)
        command = program_argv(program, program_args)
        own, notes = own_arguments(self._site, to_argv(args, "args"))
        added = {"MPI4PY_LIBMPI": self._site.flavour.library}
        if added.keys() & os.environ.keys() or "MPI4PY_MPIABI" in os.environ:
            added = {}
        environ = {**os.environ, **added, **(env or {})}
        if self._devices and environ.get(VISIBLE) == self._before.get(VISIBLE):
            environ[VISIBLE] = self._devices
        path = self._site.flavour.program(binary)
        for note in notes:
            say(note)
        ranks = under_mpi(command)
        if not is_elsewhere(own) and not DRY_RUN.read():  # which compiles no program
            check_program(ranks[0], script_of(command), environ)
        say(shlex.join([binary, *own, *command]))
        with (
            show_instead(self._gang, dry_run, "current.mpi.run()", alone=True) as planned,
            as_file(stdin, self._gang.folder) as file,
        ):
            source = LEFT if not file and given(own, {"stdin", "s"}) else file
            tries = Tries(self._gang, self._policy, is_alone=True)
            made = partial(plan, self._site, path, own, started(ranks, source))
            while not self._has_ended(tries, made, environ, shlex.join(command)):
                pass
            if planned:
                with open(self.hostfile, encoding="utf-8") as hosts:
                    planned.add_file(f"hostfile {self.hostfile}", hosts.read())

    def _has_ended(self, tries: Tries, made: Callable[..., LaunchPlan], environ: Mapping[str, str], what: str) -> bool:
        """One try; False where the ranks are to be started again. ``made`` makes its plan of the variables."""
        environ = {**environ, **tries.variables()}
        changed = [
            USERS_TMPDIR if name == "TMPDIR" else name
            for name, value in environ.items()
            if self._before.get(name) != value
        ]
        key = f"mpi-{next(self._numbers)}"
        launch = made(environ, changed, os.getcwd(), key, tries.has_restarts)
        try:
            tries.run(partial(self._launch, launch, what))
        except Again:
            return False
        except ProcessFailed as failure:
            raise explain(failure, what) from None
        return True

    def _launch(self, launch: LaunchPlan, what: str) -> None:
        try:
            self._gang.launch(launch)
        except ProcessFailed as failure:
            raise explain(failure, what) from None
