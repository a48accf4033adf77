"""An array of jobs, as data: one submission for tasks that differ in their folders only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..client.interface import Submission
from ..job import OUTPUT

LARGEST = 1000
"""Elements of one array: MaxArraySize is 1001 by default."""

BATCH = "batch.sh"
"""The file in a task's folder with its own batch script."""

NOT_WANTED = 98
"""The exit status of an element whose task has been submitted once more."""


def refusal(name: str) -> str:
    """The file in a task's folder by which its element of an array is told not to run."""
    return f"not-in-{name.rpartition('/')[2]}"


def array(name: str, options: Sequence[str], folders: Mapping[int, str]) -> Submission:
    """The submission of tasks that have these folders, by their indices.

    What an element's own script prints goes to its task's folder, as that of a job does.
    """
    cases = [f"{index}) folder={shlex.quote(folder)} ;;" for index, folder in folders.items()]
    lines = [
        "#!/bin/bash",
        "case $SLURM_ARRAY_TASK_ID in",
        *cases,
        "esac",
        f'[ ! -e "$folder"/{refusal(name)} ] || exit {NOT_WANTED}',
        f'exec /bin/bash "$folder"/{BATCH} >"$folder"/{OUTPUT} 2>&1',
        "",
    ]
    return Submission(name, "/dev/null", tuple(options), "\n".join(lines), tuple(folders))
