"""What each rank runs, as its wrapper is told, and the files that say so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from ...core.calls.entrypoint import Entrypoint
from ...core.machine.gpus import visible_gpus
from ...core.ranks.functions import RANK_MAIN
from ...core.remote_shell.hostfile import write_private
from .plan import Job, hostfile_text, rank_record


def write_files(job: Job, what: Entrypoint, changed: Mapping[str, str | None]) -> None:
    """The hostfile of one call on this node, and what its ranks' wrappers are told; ``changed`` as of rank_record."""
    program, arguments = target(what, job.options.values, job.environ, job.python)
    devices = visible_gpus() if "CUDA_VISIBLE_DEVICES" in os.environ else ()
    record = rank_record(job, program, arguments, changed, devices, what.call is not None)
    write_private(os.path.join(job.folder, f"{job.name}.json"), json.dumps(record))
    write_private(job.hostfile, hostfile_text(job))


def target(
    what: Entrypoint, options: Mapping[str, str | None], environ: Mapping[str, str], python: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Program and arguments; DeepSpeed's ``--local_rank`` goes between the two."""
    python = environ.get("PYTHON_EXEC", python)
    if what.call is not None:
        return (python, "-u", RANK_MAIN), what.arguments
    if "no_python" in options:
        return (what.target,), what.arguments
    return (python, "-u", RANK_MAIN, "--module" if "module" in options else "--script", what.target), what.arguments
