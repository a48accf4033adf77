"""The line of shell between mpirun and each rank, which reports which rank failed, and how.

mpirun itself may name no rank (MPICH), the one that it noticed first (Open MPI), or wait for ever for the others where
one has exited without MPI_Finalize (MPICH); and its own exit code is not always that of the rank.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

USERS_TMPDIR = "METAFLOW_MPI_TMPDIR"
"""The TMPDIR of the node's task, which its ranks get. What starts them has the gang's own folder in its place, since
its files stay there when it is killed.
"""

ERRORS = "METAFLOW_GANG_FOLDER"
"""The private folder of the rank's node, where a Python program's exception is written down."""

_ERROR_FILE = "mpi-rank-{rank}-error.json"

# mpirun passes USR1 and USR2 on to a rank's whole group, and the shell would end by them. A negative code is a signal;
# the shell then ends by SIGKILL, upon which every mpirun ends the other ranks. Where a rank has ended with code 0
# without having ended MPI, MPICH ends the others and names none: a file says that it has ended.
_SCRIPT = (
    "trap : USR1 USR2; "
    'if [ -n "$METAFLOW_MPI_TMPDIR" ]; then TMPDIR=$METAFLOW_MPI_TMPDIR; else unset TMPDIR; fi; '
    "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; "
    f'left=${{{ERRORS}:+"${ERRORS}/{_ERROR_FILE.replace("{rank}", "$rank")}"}}; '
    'if [ -n "$left" ]; then rm -f "$left" "$left.ended"; '
    'export TORCHELASTIC_ERROR_FILE="${TORCHELASTIC_ERROR_FILE:-$left}"; fi; '
    'METAFLOW_GANG_NUMBERED=1 "$@"; '
    "code=$?; "
    'if [ $code -eq 0 ]; then if [ -n "$left" ]; then : >>"$left.ended"; fi; wait; exit 0; fi; '
    "failed=$code; "
    "[ $code -gt 128 ] && [ $code -lt 193 ] && failed=$((128 - code)); "
    "gang=$METAFLOW_GANG_ID; "
    'echo "[gang] rank $rank (node ${gang##*.}) ended with $failed" >&2; '
    "kill -9 $$"
)

# Open MPI 5.0's daemons now and then lose the end of a rank that lives for some milliseconds only (8 of 200 runs of
# `hostname` on four hosts; none of 300 with this), and mpirun then waits for ever. A rank that lives longer takes no
# longer by it.
_LEAST_LIFE = "sleep 0.05 </dev/null >/dev/null 2>&1 & "


def error_file(folder: str) -> str:
    """Where each rank of a node with the private ``folder`` leaves its exception, with "{rank}" for its number."""
    return os.path.join(folder, _ERROR_FILE)


def reported(argv: Sequence[str], outlives_start: bool = False) -> list[str]:
    """``argv`` with a report of its failure; ``outlives_start`` where it must not end while mpirun still starts."""
    return ["sh", "-c", (_LEAST_LIFE if outlives_start else "") + _SCRIPT, "rank", *argv]
