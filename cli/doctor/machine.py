"""Processors, GPUs and their driver, shared memory, limits, and the folder for temporary files."""

from __future__ import annotations

import glob
import os
import re
import resource
from pathlib import Path

from ...core.guard.host.private_folder import temporary_folder
from ...core.guard.samples import nvml
from ...core.guard.samples.amd import Amd
from ...core.machine.cpus import cpu_count
from ...core.machine.efa import efa_devices
from ...core.machine.gpus import visible_gpus
from ...core.machine.neuron import neuron_cores
from ...core.preflight.facts import SHM, driver_version
from ...core.preflight.report import FEW_FILES, LITTLE_ROOM, MIB, MORE_SHM
from ...launchers.ray.resources import SHM_SHARE, STORE_LEAST, shared_memory_free
from .findings import BROKEN, NOT_NEEDED, OK, Finding

MACHINE = "Machine"

FEW_PROCESSES = 512
"""Processes and threads: Ray alone has 200 for each node, and each rank has some for each processor."""


def processors() -> list[Finding]:
    """Those that this process may use."""
    return [Finding(MACHINE, "processors", OK, str(cpu_count()))]


def gpus(proc: str = "/proc/driver/nvidia", dev: str = "/dev") -> list[Finding]:
    """NVIDIA's GPUs and driver, AMD's, and AWS's NeuronCores.

    Parameters
    ----------
    proc, dev : str
        Where the driver of NVIDIA shows itself.
    """
    version = driver_version(proc)
    driver = f"driver {version}" if version else "driver of unknown version"
    visible = visible_gpus()
    files = glob.glob(f"{dev}/nvidia[0-9]*")
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if files and not any(os.access(name, os.R_OK | os.W_OK) for name in files):
        advice = f"This user may not open {files[0]}: let the user into the group that owns it, or fix its mode."
        return [Finding(MACHINE, "GPUs", BROKEN, f"{len(files)} of NVIDIA, {driver}", advice)]
    if files or os.path.exists(f"{dev}/nvidiactl"):
        models = sorted(set(re.findall(r"^Model:\s+(.+)$", _texts(f"{proc}/gpus/*/information"), re.MULTILINE)))
        found = f"{len(visible)} of NVIDIA ({', '.join(models) or 'of unknown model'}), {driver}"
        if chosen is not None:
            found += f", CUDA_VISIBLE_DEVICES={chosen}"
        try:
            nvml.Nvml()
        except OSError as error:
            advice = (
                f"The driver's library does not work ({error}). A driver that was updated needs the machine started "
                "anew; a container needs NVIDIA's runtime (docker run --gpus all)."
            )
            return [Finding(MACHINE, "GPUs", BROKEN, found, advice)]
        return [Finding(MACHINE, "GPUs", OK, found)]
    others = [(len(Amd().folders), "of AMD"), (neuron_cores(), "NeuronCores")]
    told = ", ".join(f"{count} {kind}" for count, kind in others if count)
    return [Finding(MACHINE, "GPUs", OK, told) if told else Finding(MACHINE, "GPUs", NOT_NEEDED, "none")]


def _texts(pattern: str) -> str:
    found = []
    for name in glob.glob(pattern):
        try:
            found.append(Path(name).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def shared_memory() -> list[Finding]:
    """/dev/shm, in which NCCL, DataLoader's workers, MPI and Ray's object store lie."""
    advice = f"NCCL, the workers of a DataLoader, MPI and Ray's object store need more: {MORE_SHM}."
    try:
        status = os.statvfs(SHM)
    except OSError as error:
        return [Finding(MACHINE, SHM, BROKEN, f"none ({error.strerror})", advice)]
    size, free = status.f_blocks * status.f_frsize, shared_memory_free()
    found = f"{size // MIB} MiB, {free // MIB} MiB of it free"
    if not os.access(SHM, os.W_OK | os.X_OK):
        return [Finding(MACHINE, SHM, BROKEN, found, f"This user may not write to {SHM}: its mode has to be 1777.")]
    if free * SHM_SHARE < STORE_LEAST:
        return [Finding(MACHINE, SHM, BROKEN, found, advice)]
    return [Finding(MACHINE, SHM, OK, found)]


def limits() -> list[Finding]:
    """Open files, processes, and locked memory."""
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [_limit("open files", files, FEW_FILES, f"{_number(files)}, at most {_number(most_files)}", "ulimit -n")]
    processes, what = _processes()
    found.append(_limit("processes", processes, FEW_PROCESSES, f"{_number(processes)}{what}", "ulimit -u"))
    return [*found, _locked_memory()]


def _limit(name: str, value: int, few: int, found: str, command: str) -> Finding:
    if 0 <= value < few:
        advice = f"Raise the limit to at least {few} ({command}, or the container's --ulimit or --pids-limit)."
        return Finding(MACHINE, name, BROKEN, found, advice)
    return Finding(MACHINE, name, OK, found)


def _processes() -> tuple[int, str]:
    """The lowest limit of processes, and whose it is; of root the user's own does not count."""
    own = resource.getrlimit(resource.RLIMIT_NPROC)[0] if os.geteuid() else resource.RLIM_INFINITY
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        text = _texts(path).strip()
        if text.isdecimal() and (own < 0 or int(text) < own):
            return int(text), " (of the container)"
    return own, ""


def _locked_memory() -> Finding:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    found = "unlimited" if soft < 0 else f"{soft >> 10} KiB"
    fast = glob.glob("/dev/infiniband/uverbs*")
    if soft < 0:
        return Finding(MACHINE, "locked memory", OK, found)
    if not fast:
        return Finding(MACHINE, "locked memory", NOT_NEEDED, f"{found}; no network adapter here needs it")
    adapter = "EFA" if efa_devices() else "InfiniBand"
    advice = f"{adapter} needs it unlimited: ulimit -l unlimited, or docker run --ulimit memlock=-1."
    return Finding(MACHINE, "locked memory", BROKEN, found, advice)


def _number(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def temporary_files() -> list[Finding]:
    """TMPDIR, else /tmp: where the guard has its private folders."""
    try:
        folder = temporary_folder()
        status = os.statvfs(folder)
    except OSError as error:
        return [Finding(MACHINE, "TMPDIR", BROKEN, str(error), "Set TMPDIR to a folder that this user may write to.")]
    free = status.f_bavail * status.f_frsize
    found = f"{folder}, {free / (1 << 30):.1f} GiB free"
    if status.f_flag & os.ST_NOEXEC:
        advice = (
            "It is mounted noexec, and @mpi and @deepspeed start a script there. Set TMPDIR to a folder on another "
            "file system, or mount it without noexec."
        )
        return [Finding(MACHINE, "TMPDIR", BROKEN, found, advice)]
    if free < LITTLE_ROOM:
        return [Finding(MACHINE, "TMPDIR", BROKEN, found, "Make room there, or set TMPDIR to another folder.")]
    return [Finding(MACHINE, "TMPDIR", OK, found)]
