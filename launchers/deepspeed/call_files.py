"""The files of one call on one node: DeepSpeed's configuration, its hostfile, and what its ranks run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core.calls.entrypoint import Entrypoint
from ...core.dry_run.planned import Planned
from ...core.exceptions import BadAttribute
from ...core.machine.gpus import visible_gpus
from ...core.ranks.functions import RANK_MAIN
from ...core.remote_shell.hostfile import write_private
from .plan import Job, hostfile_text, rank_record


def with_files(
    entrypoint_args: Mapping[str, Any] | Sequence[Any] | None, folder: str, name: str
) -> Mapping[str, Any] | Sequence[Any] | None:
    """A script's arguments, with each dict among their values replaced by the path of a JSON file that holds it.

    Parameters
    ----------
    folder : str
        Private to this node; the files go with it.
    name : str
        How the files' names begin.

    Raises
    ------
    BadAttribute
        A dict that JSON cannot hold.

    Example
    -------
    ``with_files({"deepspeed_config": {"train_batch_size": 32}}, folder, "deepspeed-1")``
    """
    if not isinstance(entrypoint_args, Mapping):
        return entrypoint_args
    return {
        key: _written(key, value, os.path.join(folder, f"{name}-{number}.json"))
        if isinstance(value, Mapping)
        else value
        for number, (key, value) in enumerate(entrypoint_args.items())
    }


def _written(key: str, value: Mapping[str, Any], path: str) -> str:
    try:
        text = json.dumps(value, indent=2)
    except (TypeError, ValueError) as error:
        raise BadAttribute(f"entrypoint_args[{key!r}] is a dict that JSON cannot hold: {error}.") from None
    write_private(path, text)
    return path


def write_files(job: Job, what: Entrypoint, changed: Mapping[str, str | None]) -> None:
    """Write the hostfile of one call on this node, and the record for its ranks' wrappers (see :func:`rank_record`)."""
    program, arguments = target(what, job.options.values, job.environ, job.python)
    devices = visible_gpus() if "CUDA_VISIBLE_DEVICES" in os.environ else ()
    record = rank_record(job, program, arguments, changed, devices, what.call is not None)
    write_private(os.path.join(job.folder, f"{job.name}.json"), json.dumps(record))
    write_private(job.hostfile, hostfile_text(job))


def show_files(job: Job, planned: Planned | None) -> None:
    """Add to a dry run what the wrapper of each rank of this node would start, and the hostfile."""
    if planned is None or job.node_index not in job.layout.nodes:
        return
    with open(os.path.join(job.folder, f"{job.name}.json"), encoding="utf-8", errors="surrogateescape") as file:
        record = json.load(file)
    local_rank = ["--local_rank=N"] if record["local_rank"] else []
    title = "each rank, for which DeepSpeed adds its number and its device"
    planned.add_command(title, [*record["program"], *local_rank, *record["arguments"]], record["set"])
    planned.add_file(f"hostfile {job.hostfile}", hostfile_text(job))


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


@contextlib.contextmanager
def tidied(folder: str, name: str) -> Iterator[None]:
    """Remove the files of one call, which may hold a secret, at the end of the block."""
    try:
        yield
    finally:
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            if entry == f"{name}.json" or entry.startswith(f"{name}-"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, entry))
