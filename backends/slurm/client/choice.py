"""Which machine has the job's folder, and which way leads to Slurm: what a step's ``login`` says."""

from __future__ import annotations

from .commands import Commands
from .interface import Slurm
from .machine import Machine
from .remote import LoginNode
from .rest import Rest
from .rest_call import is_url


def choose(login: str) -> tuple[Machine, Slurm]:
    """Slurm's commands here, those of a login node over SSH, or slurmrestd beside the files here."""
    if is_url(login):
        return Machine(), Rest(login)
    machine = LoginNode(login) if login else Machine()
    return machine, Commands(machine)
