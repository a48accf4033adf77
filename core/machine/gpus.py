"""The processors and GPUs of this machine, and the GPUs' distribution over the nodes of a local gang.

No framework is imported for it: importing torch takes seconds, and would initialise devices in the wrong process.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cpus import cpu_count as cpu_count

# Entries of CUDA_VISIBLE_DEVICES that name a GPU, a part of one (MIG), or its number.
_GPU_NAME = re.compile(r"\d+|GPU-[-0-9a-zA-Z]+|MIG-[-/0-9a-zA-Z]+")
_SMI_TIMEOUT = 10.0


class TooFewGpus(ValueError):
    """The nodes of a local gang were promised more GPUs than this machine has."""


@dataclass(frozen=True)
class Shares:
    """How the nodes of a local gang share the machine's GPUs.

    ``values`` has, by node index, what CUDA_VISIBLE_DEVICES must be, or None where it must be left as it is. ``gpus``
    has how many GPUs each node then sees. ``notice`` is a sentence for the user, or empty.
    """

    values: tuple[str | None, ...]
    gpus: tuple[int, ...]
    notice: str = ""


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The GPUs that a CUDA program started now would see, as CUDA_VISIBLE_DEVICES names them.

    The user's CUDA_VISIBLE_DEVICES is believed as CUDA reads it: numbers, UUIDs and MIG names up to the first entry
    that is none of them; empty or "-1" is no GPU. Where it is not set, the driver's device files are counted, then
    what ``nvidia-smi -L`` lists.

    Parameters
    ----------
    environment : mapping, optional
        ``os.environ`` where None.
    """
    environment = os.environ if environment is None else environment
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(str(number) for number in range(_count_hardware(environment.get("PATH"))))
    names: list[str] = []
    for entry in chosen.split(","):
        if not _GPU_NAME.fullmatch(entry.strip()):
            break
        names.append(entry.strip())
    # CUDA shows no GPU at all where one is named twice.
    return tuple(names) if len(set(names)) == len(names) else ()


def gpu_count(environment: Mapping[str, str] | None = None) -> int:
    """How many GPUs a CUDA program started now would see: see :func:`visible_gpus`."""
    return len(visible_gpus(environment))


def share_gpus(visible: Sequence[str], num_nodes: int, requested: int | None) -> Shares:
    """Shares the machine's GPUs among the nodes of a local gang, none of them used by two.

    Parameters
    ----------
    visible : sequence of str
        From :func:`visible_gpus`.
    num_nodes : int
        Nodes of the gang, all on this machine.
    requested : int, optional
        GPUs that each node asked for with ``@resources(gpu=...)``; None where it did not ask.

    Raises
    ------
    TooFewGpus
        The machine has GPUs, but not ``num_nodes`` times ``requested``.

    Example
    -------
    ``share_gpus(("0", "1", "2", "3"), 2, None).values == ("0,1", "2,3")``
    """
    total = len(visible)
    if total == 0:
        wish = f"Each node asks for {_gpus(requested)}, but programs on this machine see none: "
        notice = f"{wish}the local nodes run without." if requested else ""
        return Shares((None,) * num_nodes, (0,) * num_nodes, notice)
    if num_nodes == 1 and requested is None:
        return Shares((None,), (total,))
    notice = ""
    each = total // num_nodes if requested is None else requested
    if each * num_nodes > total:
        raise TooFewGpus(
            f"{num_nodes} nodes on this machine ask for {_gpus(each)} each, {each * num_nodes} in all, but it has "
            f"{total}{_as_chosen()}. Ask for at most {total // num_nodes} with @resources(gpu=...), use fewer nodes, "
            "or run the step on a cluster."
        )
    if requested is None and each == 0:
        notice = (
            f"This machine has {_gpus(total)} for {num_nodes} local nodes, and NCCL refuses two ranks on one GPU: the "
            f"nodes run without GPUs. Use num_parallel={total} to give each node one."
        )
    elif requested is None and each * num_nodes < total:
        unused = total - each * num_nodes
        notice = f"The {num_nodes} local nodes get {_gpus(each)} each; {unused} of {total} stay unused."
    values = tuple(",".join(visible[node * each : (node + 1) * each]) for node in range(num_nodes))
    return Shares(values, (each,) * num_nodes, notice)


def _gpus(count: int | None) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _as_chosen() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"


def _count_hardware(path: str | None) -> int:
    """NVIDIA GPUs by device files that this process may open, by the driver's list, or by nvidia-smi on ``path``."""
    files = [name for name in glob.glob("/dev/nvidia[0-9]*") if name[len("/dev/nvidia") :].isdecimal()]
    usable = [name for name in files if os.access(name, os.R_OK | os.W_OK)]
    if files:
        return len(usable)
    listed = glob.glob("/proc/driver/nvidia/gpus/*")
    if listed:
        return len(listed)
    smi = shutil.which("nvidia-smi", path=path)
    if smi is None:
        return 0
    try:
        answer = subprocess.run(
            [smi, "-L"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SMI_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(re.findall(rb"^GPU \d+:", answer.stdout, re.MULTILINE))
