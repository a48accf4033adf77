"""Refusal of a gang inside a gang: the step's command, started again by the step's own body.

Some frameworks start further processes that way: Lightning's ``Trainer(devices=2)``, for example, runs ``sys.argv``
again for each. Such a process would form the same gang again, and the first one would wait for it.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ..exceptions import BadAttribute
from ..guard.node.preemption import NESTED, TOLD
from ..logs import say
from ..metaflow_compat.configuration import attempt_in
from ..rendezvous.task_info import TaskInfo

_STEP = "METAFLOW_GANG_STEP"
"""A variable of all programs that a body starts: the attempt, the guard's pid and the private folder."""

REFUSED = (
    "the step's body started the step's own command again, as Lightning's Trainer(devices=2) does to get its ranks: "
    "that would form a gang inside the gang. Have the ranks started by current.torch.run(entrypoint=...) in a step "
    "with @torchrun; a Trainer of the body itself takes devices=1"
)
"""The clause of the failure, after the node's name."""


def mark_what_is_started(task: TaskInfo, guard_pid: int, folder: str) -> None:
    """Set the variable by which programs that this task starts can be distinguished from the task."""
    os.environ[_STEP] = "\n".join([attempt_of(task), str(guard_pid), folder])


def is_started_by_a_body() -> bool:
    """Whether the body of a gang's step has started this process, directly or not."""
    return _STEP in os.environ


def attempt_of(task: TaskInfo) -> str:
    """The name of one attempt of one task."""
    return f"{task.run_id}/{task.step_name}/{task.task_id}/{task.attempt}"


def refuse_to_nest(attempt: str | None = None) -> None:
    """End this process where it is the command of a task that runs already, started by that task.

    This has to happen before Metaflow runs the task, which would overwrite the state of the first one. The gang fails
    with the same message: the framework may not notice the failure of the process.

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
        say(f"The gang could not be notified of this: {error}")
    raise BadAttribute(f"{REFUSED[0].upper()}{REFUSED[1:]}.")
