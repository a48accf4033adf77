"""A step's command that its own body starts again: a gang inside the gang, which is refused.

Some frameworks get their further processes that way: Lightning's ``Trainer(devices=2)``, for one, runs ``sys.argv``
once more for each. Such a process would form the same gang again, and the first one would wait for it.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ..exceptions import BadAttribute
from ..gang.gang import TaskInfo
from ..guard.node.preemption import NESTED, TOLD
from ..logs import say
from ..metaflow_compat.configuration import attempt_in

_STEP = "METAFLOW_GANG_STEP"
"""In what a body starts: the attempt of the task, the pid of its guard and its private folder."""

REFUSED = (
    "the step's body started the step's own command again, as Lightning's Trainer(devices=2) does to get its ranks: "
    "that would form a gang inside the gang. Have the ranks started by current.torch.run(entrypoint=...) in a step "
    "with @torchrun; a Trainer of the body itself takes devices=1"
)
"""A clause that follows the node's name."""


def mark_what_is_started(task: TaskInfo, guard_pid: int, folder: str) -> None:
    """From here on, whatever this task starts can be told from the task."""
    os.environ[_STEP] = "\n".join([attempt_of(task), str(guard_pid), folder])


def is_started_by_a_body() -> bool:
    """Whether this process descends from the body of a gang's step."""
    return _STEP in os.environ


def attempt_of(task: TaskInfo) -> str:
    """Names one attempt of one task."""
    return f"{task.run_id}/{task.step_name}/{task.task_id}/{task.attempt}"


def refuse_to_nest(attempt: str | None = None) -> None:
    """End this process where it is the command of a task that runs already, and that has started it.

    Before Metaflow runs the task, which would overwrite the state of the first one. The gang that there is fails with
    the same words: a framework waits for a process that it has started, and not for its failure.

    Parameters
    ----------
    attempt : str, optional
        Which attempt of which task this process is; by default what its command line says.

    Raises
    ------
    BadAttribute
    """
    running, _, rest = os.environ.get(_STEP, "").partition("\n")
    if running and running == (attempt or attempt_in(sys.argv)):
        _refuse(*rest.partition("\n")[::2])


def _refuse(guard_pid: str, folder: str) -> NoReturn:
    try:
        with open(os.path.join(folder, NESTED), "w", encoding="utf-8") as file:
            file.write(REFUSED)
        os.kill(int(guard_pid), TOLD)
    except (OSError, ValueError) as error:
        say(f"The gang could not be told of this: {error}")
    raise BadAttribute(f"{REFUSED[0].upper()}{REFUSED[1:]}.")
