"""The line of shell that a rank runs before its program: it finds the program and opens its stdin.

mpirun would look for the program itself, but what it starts is our shell. And it is no good at stdin: Open MPI 5 gives
rank 0 one without an end, MPICH all others, and MPICH ends a rank 0 that does not read fast enough.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from ...core.calls.entrypoint import check_script
from ...core.exceptions import BadAttribute

EMPTY, LEFT = "", "+"
"""In the place of a path: an empty stdin for all ranks; for every rank what mpirun gives it, where the user's
arguments of mpirun choose that.
"""

# It looks as mpirun does: on the PATH, then in the working folder. By `exec`, so that no builtin of the shell that has
# the program's name is run, and so that the program takes the shell's place.
_SCRIPT = r"""
metaflow_gang_node=${METAFLOW_GANG_ID##*.}
case $0:${OMPI_COMM_WORLD_RANK:-$PMI_RANK} in
+:*) ;;
:* | *:[1-9]*) exec </dev/null ;;
*)
    if [ "$metaflow_gang_node" != 0 ]; then
        echo "[gang] Rank 0 runs on node $metaflow_gang_node, and what stdin= gives it is on node 0." >&2
        exit 126
    fi
    exec <"$0" ;;
esac
case $1 in
*/*) metaflow_gang_found=$1 ;;
*)
    metaflow_gang_found=; IFS=:; set -f
    for metaflow_gang_folder in $PATH .; do
        if [ -f "${metaflow_gang_folder:-.}/$1" ] && [ -x "${metaflow_gang_folder:-.}/$1" ]; then
            metaflow_gang_found=${metaflow_gang_folder:-.}/$1; break
        fi
    done ;;
esac
if ! [ -e "$metaflow_gang_found" ]; then
    case $1 in
    /*) metaflow_gang_found= ;;
    */*) metaflow_gang_found=" in $(pwd)" ;;
    *) metaflow_gang_found=", neither on its PATH nor in $(pwd)" ;;
    esac
    echo "[gang] Node $metaflow_gang_node has no program '$1'$metaflow_gang_found." \
        "current.mpi.broadcast_file() copies a file of node 0 to all nodes." >&2
    exit 127
fi
shift
exec "$metaflow_gang_found" "$@"
"""


def started(argv: Sequence[str], stdin: str = EMPTY) -> list[str]:
    """``argv`` as each rank starts it.

    The program is looked for on the rank's own node: on its PATH, then in its working folder. Where it is not there,
    the rank prints it with the number of the node, and exits with code 127.

    Parameters
    ----------
    stdin : str
        The absolute path of a file of node 0 for rank 0; or :data:`EMPTY`, or :data:`LEFT`.

    Example
    -------
    ``started(["hello", "-v"])`` runs ``./hello -v`` where no folder of the PATH has a ``hello``.
    """
    return ["sh", "-c", _SCRIPT, stdin, *argv]


def check_program(program: str, script: str | None, environ: Mapping[str, str]) -> None:
    """Look for the program, and the script that it runs, on this node, where ranks would find them.

    Parameters
    ----------
    program : str
        A name, which is looked for on the PATH and in the working folder, or a path.
    script : str, optional
        What an interpreter is to run.
    environ : mapping
        The ranks', which has the PATH.

    Raises
    ------
    BadAttribute
        It is not there, or cannot be run by this user.
    """
    path = program if "/" in program else os.path.join(os.curdir, program)
    if "/" not in program and shutil.which(program, path=environ.get("PATH", os.defpath)):
        path = ""
    if path and not os.path.isfile(path):
        where = os.path.abspath(path) if "/" in program else f"{program!r}, neither on the PATH nor in {os.getcwd()}"
        raise BadAttribute(
            f"There is no program {where}. Check its name; current.mpi.cc() compiles C, and on a cluster only the "
            "files of the code package are there."
        )
    if path and not os.access(path, os.X_OK):
        raise BadAttribute(f"{os.path.abspath(path)} cannot be run: it is not executable. chmod +x makes it so.")
    if script is not None:
        check_script(script)
