"""The command line of mpirun for each flavour of MPI, as data."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.gang.launch_plan import LaunchPlan, Process
from ...core.ranks.rank_report import REPORT
from ...core.remote_shell.choice import NO_SCHEDULERS, in_allocation
from .flavour import INTEL, OPEN_MPI_4, OPEN_MPI_5, Flavour
from .peer_lost import PEER_LOST
from .rank import ERRORS, USERS_TMPDIR, error_file, reported

REPORT_GRACE_S = 1.0
"""What mpirun gets to end by itself once a rank has failed, and to report it itself. Open MPI 4 takes up to
four seconds.
"""

_HOSTFILE = frozenset(
    {"hostfile", "machinefile", "f", "host", "hosts", "H", "default-hostfile", "configfile", "app", "appfile"}
)
# Whose value names one file of nodes.
_HOSTFILE_PATH = frozenset({"hostfile", "machinefile", "f", "default-hostfile"})
_OLD_HOSTFILE = "hostfile.txt"
"""What the older package called its hostfile, in the task's first working folder: /metaflow on its images."""
# Options of Open MPI that mean nothing to Hydra, which allows both without being asked, and knows neither.
_NOTHING_TO_HYDRA = frozenset({"allow-run-as-root", "oversubscribe"})
_COUNT = frozenset({"n", "np", "c"})
_MAPPED = frozenset({"N", "npernode", "ppn", "perhost", "npersocket", "configfile", "app", "appfile"})

# What a process gets that was itself started by mpirun: a child that saw it would take itself for that rank.
_STATE_OF_A_RANK = re.compile(
    r"OMPI_(COMM_WORLD|UNIVERSE|APP_CTX|FIRST_RANKS|FILE_LOCATION|ARGV|COMMAND|NUM_APP|WORLD)\w*"
    r"|OMPI_MCA_(orte|ess|pmix|initial_wdir|shmem_RUNTIME)\w*|PMIX_(?!MCA_)\w+|PMI2?_\w+|PRTE_(?!MCA_)\w+"
    r"|HYDI?_\w+|MPI_LOCALNRANKS|MPI_LOCALRANKID|MPIR_CVAR_CH3_INTERFACE_HOSTNAME"
)


@dataclass(frozen=True)
class Site:
    """What this gang offers an mpirun, the same for every call.

    Parameters
    ----------
    flavour : Flavour
    hostfile : str
        Path of the hostfile with all nodes.
    slots : int
        Ranks that the nodes of the hostfile take together.
    crowded : bool
        Whether a node has more slots than processors.
    rsh : str
        What starts a command on another node; "" where all nodes are this machine.
    interface : str
        Interface or network by which the nodes reach each other; "" for MPI's own choice.
    is_root : bool
    tmpdir : str
        Where what mpirun starts keeps its files on this node.
    shared_memory : str
        Where ranks have theirs, on every node; "" where that is MPI's own choice.
    """

    flavour: Flavour
    hostfile: str
    slots: int
    crowded: bool
    rsh: str
    interface: str
    is_root: bool
    tmpdir: str
    shared_memory: str


def own_arguments(site: Site, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The user's arguments of mpirun without those that repeat ours, and notes of what was replaced.

    Left out are our own hostfile, whose nodes are then known to be the gang's; the older package's, which is no longer
    written; and, for Hydra, options of Open MPI for which it has no need.

    Example
    -------
    ``own_arguments(site, ["-n", "4", "--hostfile", "/metaflow/hostfile.txt"])[0] == ["-n", "4"]``
    """
    kept: list[str] = []
    notes: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in _HOSTFILE_PATH and (equals or rest):
            path = value if equals else rest[0]
            is_old = os.path.basename(path) == _OLD_HOSTFILE and not os.path.exists(path)
            if is_old or _same_file(path, site.hostfile):
                if not equals:
                    del rest[0]
                if is_old:
                    notes.append(f"{path} is not written any more: mpirun gets this gang's own, {site.hostfile}.")
                continue
        if argument.startswith("-") and name in _NOTHING_TO_HYDRA and not site.flavour.is_open_mpi:
            notes.append(f"{argument} is an option of Open MPI and was left out: {site.flavour} has no need of it.")
            continue
        kept.append(argument)
    return kept, notes


def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def is_elsewhere(args: Sequence[str]) -> bool:
    """Whether the user has ranks run, or look for their program, elsewhere than in this folder and on these nodes."""
    return given(args, _HOSTFILE | {"wdir", "wd", "path", "nolocal"})


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what a rank of another mpirun has in it. The user's own settings of MPI stay."""
    return {name: value for name, value in environ.items() if not _STATE_OF_A_RANK.fullmatch(name)}


def own_tmpdir(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """For mpirun and its daemons: the TMPDIR ``folder``, below this node's own, and the user's own for the ranks."""
    return {"TMPDIR": folder, ERRORS: os.path.dirname(folder), USERS_TMPDIR: environ.get("TMPDIR", "")}


def plan(
    site: Site,
    binary: str,
    args: Sequence[str],
    program: Sequence[str],
    environ: Mapping[str, str],
    passed_on: Sequence[str],
    cwd: str,
    key: str = "",
    restartable: bool = False,
) -> LaunchPlan:
    """One call of mpirun on control.

    Parameters
    ----------
    binary : str
        Path of mpirun or mpiexec.
    args : sequence of str
        The user's own arguments of it; what they set is not set again.
    program : sequence of str
        What each rank runs.
    environ : mapping
        mpirun's environment.
    passed_on : sequence of str
        Names of variables that ranks on other nodes get, too.
    key : str
        Of this launch, different for each in a gang.
    restartable : bool
        Whether the ranks may be started again.
    """
    env = {**clean_environment(environ), **own_tmpdir(environ, site.tmpdir)}
    arguments = open_mpi if site.flavour.is_open_mpi else hydra
    argv = [binary, *arguments(site, args, env, [name for name in passed_on if name in env]), *args]
    if not given(args, _COUNT | _MAPPED) and not _maps(args):
        argv += ["-n", str(site.slots)]
    process = Process(
        argv=(*argv, *reported(program, outlives_start=site.flavour.kind == OPEN_MPI_5)),
        env=env,
        cwd=cwd,
        title=os.path.basename(binary),
        error_file=error_file(os.path.dirname(site.tmpdir)),
        report=REPORT,
        report_grace=REPORT_GRACE_S,
    )
    return LaunchPlan((process,), peer_lost=PEER_LOST, key=key, restartable=restartable)


def open_mpi(site: Site, args: Sequence[str], env: Mapping[str, str], passed_on: Sequence[str]) -> list[str]:
    """Open MPI's own options, except those that the user sets in arguments or environment."""
    is_4 = site.flavour.kind == OPEN_MPI_4
    argv: list[str] = []

    def mca(name: str, value: str, runtime: bool) -> None:
        """One parameter; ``runtime``: of what starts the ranks, which is PRRTE from version 5 on."""
        option, prefix = ("--prtemca", "PRTE_MCA_") if runtime and not is_4 else ("--mca", "OMPI_MCA_")
        if name not in args and prefix + name not in env:
            argv.extend([option, name, value])

    if site.is_root and not given(args, {"allow-run-as-root"}):
        argv.append("--allow-run-as-root")
    if not given(args, _HOSTFILE):
        argv += ["--hostfile", site.hostfile]
    if in_allocation(env):
        for name, value in NO_SCHEDULERS.items():
            mca(name, value, runtime=True)
    if site.rsh:
        # Attached, so that what runs on another node ends with the connection; and started from here only, since
        # the others' own way to start a command is elsewhere.
        argv.append("--leave-session-attached")
        # A list, of which the first that is there is taken: the daemons on the other nodes get it, too, look for it
        # and crash where nothing is found. This node's is nowhere else; they start nothing, so any program will do.
        mca("plm_rsh_agent" if is_4 else "plm_ssh_agent", f"{site.rsh}:sh", runtime=True)
        mca("plm_rsh_no_tree_spawn" if is_4 else "plm_ssh_no_tree_spawn", "1", runtime=True)
    if site.interface:
        mca("oob_tcp_if_include" if is_4 else "prte_if_include", site.interface, runtime=True)
        if "btl_tcp_if_exclude" not in args and "OMPI_MCA_btl_tcp_if_exclude" not in env:
            mca("btl_tcp_if_include", site.interface, runtime=False)
    if site.shared_memory:
        mca("btl_vader_backing_directory" if is_4 else "btl_sm_backing_directory", site.shared_memory, runtime=False)
    wanted = count(args)
    if wanted is not None and wanted > site.slots and not given(args, _HOSTFILE) and not _maps(args):
        argv += ["--oversubscribe"] if is_4 else ["--map-by", ":OVERSUBSCRIBE"]
    if site.crowded or (wanted or 0) > site.slots:
        if not given(args, {"bind-to", "bind-to-core", "bind-to-socket", "cpu-set"}):
            argv += ["--bind-to", "none"]
        mca("mpi_yield_when_idle", "1", runtime=False)
    for name in passed_on:
        argv += ["-x", name]
    return argv


def hydra(site: Site, args: Sequence[str], env: Mapping[str, str], passed_on: Sequence[str]) -> list[str]:
    """Hydra's options, which MPICH and Intel MPI share, except those that the user sets in arguments or environment."""
    argv: list[str] = []
    if not given(args, _HOSTFILE):
        argv += ["-machinefile" if site.flavour.kind == INTEL else "-f", site.hostfile]
    chosen = given(args, {"launcher", "bootstrap"}) or bool({"HYDRA_LAUNCHER", "I_MPI_HYDRA_BOOTSTRAP"} & env.keys())
    launcher = "-bootstrap" if site.flavour.kind == INTEL else "-launcher"
    if site.rsh and not chosen:
        argv += [launcher, "ssh", f"{launcher}-exec", site.rsh]
    elif in_allocation(env) and not chosen:
        argv += [launcher, "fork"]  # by itself it would start what runs here by srun
    has_interface = given(args, {"iface"}) or bool({"HYDRA_IFACE", "I_MPI_HYDRA_IFACE"} & env.keys())
    if site.rsh and site.interface and not has_interface:
        argv += ["-iface", site.interface]
    # By itself it gives every rank control's whole environment, its PATH and its GPUs included.
    if not given(args, {"genvall", "genvnone", "genvlist", "envall", "envnone", "envlist", "configfile"}):
        argv += ["-genvlist", ",".join(passed_on)] if passed_on else ["-genvnone"]
    return argv


def given(args: Sequence[str], names: frozenset[str] | set[str]) -> bool:
    """Whether any of these options is among ``args``, with one dash or two, its value apart or after "="."""
    return any(arg.startswith("-") and arg.lstrip("-").partition("=")[0] in names for arg in args)


def count(args: Sequence[str]) -> int | None:
    """The number of ranks that ``args`` ask for, where it is a number."""
    for option, value in itertools.pairwise(args):
        if option.startswith("-") and option.lstrip("-") in _COUNT and value.isdigit():
            return int(value)
    return None


def _maps(args: Sequence[str]) -> bool:
    """Whether the user sets how many ranks each node gets ("--map-by ppr:2:node")."""
    return any(value.startswith("ppr:") for value in args)


def common_interface(interfaces: Sequence[str | None], addresses: Sequence[str]) -> str:
    """The nodes' network, in a form that is the same on every node.

    The interface's name, where it is the same on all; else the smallest network that holds all addresses; "" where
    neither is known.

    Parameters
    ----------
    interfaces : sequence of str or None
        Each node's interface towards the others.
    addresses : sequence of str
        Each node's address.
    """
    if interfaces[0] and len(set(interfaces)) == 1:
        return interfaces[0]
    numbers = [ipaddress.ip_address(address) for address in addresses]
    if len({number.version for number in numbers}) > 1:
        return ""
    network = ipaddress.ip_network(f"{numbers[0]}/{numbers[0].max_prefixlen}")
    while not all(number in network for number in numbers):
        network = network.supernet()
    return str(network) if network.prefixlen else ""
