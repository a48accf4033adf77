"""The gangs of a run, a step or a task, as Metaflow's client has them, or a sentence why there are none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from metaflow import Flow, Run, Step, Task, get_metadata, metadata, namespace
from metaflow.exception import MetaflowException, MetaflowNotFound

from ..core.metadata import FAILURE, NODES, PHASES, RESTARTS, TRACES
from ..core.metaflow_compat.tasks import place_of_task

LOOKED_AT = 3
"""Tasks of a step that are asked whether they are a gang's, where the ids do not say it: a gang of one node has a task
like any other. A foreach may have thousands.
"""

ASKED = 16
"""Nodes of a gang that are asked for its first failure, which all have that have any, where node 0 has none."""

NAMED = 20
"""Steps or tasks that are named where there is none of the name that was asked for."""


class NotFound(Exception):
    """There is no such run, step or task, or no gang in it. The message is a sentence for the user."""


@dataclass
class GangOfRun:
    """One gang: the tasks of its nodes, and what Metaflow knew of them when it was first asked.

    Attributes
    ----------
    step : str
        Flow/run/step.
    control : str
        The id of node 0's task.
    tasks : dict of int to Task
        By node. A node that never came has none.
    """

    step: str
    control: str
    tasks: dict[int, Any] = field(default_factory=dict)
    _found: dict[tuple[int, int], dict[str, str] | None] = field(default_factory=dict, repr=False)

    @property
    def pathspec(self) -> str:
        """That of node 0's task."""
        return f"{self.step}/{self.control}"

    @property
    def attempts(self) -> int:
        """How many attempts have begun."""
        return max((int(_metadata(task).get("attempt", 0)) for task in self._first_tasks()), default=0) + 1

    def attempt(self, wanted: int | None) -> int:
        """The number of the attempt that is ``wanted``, None for the latest. Raises NotFound where there is none."""
        latest = self.attempts - 1
        if wanted is not None and not 0 <= wanted <= latest:
            raise NotFound(f"{self.pathspec} has no attempt {wanted}: the latest is {latest}.")
        return latest if wanted is None else wanted

    def metadata(self, attempt: int) -> Iterator[dict[str, str]]:
        """The metadata of one attempt, of node 0's task, then of the others', which are asked only as far as needed."""
        for node in sorted(self.tasks)[:ASKED]:
            found = self._metadata_of(node, attempt)
            if found is not None:
                yield found

    def traces(self, attempt: int) -> dict[int, dict[str, Any]]:
        """By node, the traces of torch's profiler of an attempt; see ``core/storage/traces.py``."""
        found = {node: self._metadata_of(node, attempt) or {} for node in sorted(self.tasks)}
        return {node: json.loads(values[TRACES]) for node, values in found.items() if TRACES in values}

    def datastore(self) -> tuple[str, str]:
        """The kind and the root of the datastore that the gang's tasks had. Raises NotFound where that is not known."""
        for task in self._first_tasks():
            values = _metadata(task)
            if "ds-type" in values and "ds-root" in values:
                return values["ds-type"], values["ds-root"]
        raise NotFound(f"Metaflow's metadata of {self.pathspec} do not say which datastore it had.")

    def failure(self, attempt: int) -> dict[str, Any] | None:
        """The first failure of an attempt; every node that has one has the same."""
        if self.has_ended(attempt):
            return None  # no other task has to be asked
        told: dict[str, Any] | None = self._first(FAILURE, attempt)
        return told and {"last_lines": [], **told}  # versions before this one have none

    def phases(self, attempt: int) -> dict[str, Any] | None:
        """The phases of node 0 in an attempt, with those of the gang; of another node where node 0 has left none."""
        phases: dict[str, Any] | None = self._first(PHASES, attempt)
        return phases

    def restarts(self, attempt: int) -> list[dict[str, Any]]:
        """For each time that ranks had failed in an attempt with restarts: the ``line`` of the log, ``at`` (epoch), and
        whether they were started ``again``.
        """
        told: list[dict[str, Any]] = self._of_node_0(RESTARTS, attempt) or []
        return [{"again": True, **entry} for entry in told]  # versions before this one do not say it

    def nodes_told(self, attempt: int) -> list[dict[str, Any]]:
        """The nodes that were left out of an attempt, waited as spare ones, or took other places: ``node``, ``at``
        (epoch), ``state`` and ``text``, as the card has them.
        """
        told: list[dict[str, Any]] = self._of_node_0(NODES, attempt) or []
        return told

    def has_ended(self, attempt: int) -> bool | None:
        """Whether Metaflow says that node 0's attempt has ended well (True) or not (False); None where it does not."""
        said = (self._metadata_of(0, attempt) or {}).get("attempt_ok")
        return None if said is None else said == "True"

    def _first(self, name: str, attempt: int) -> Any:
        """The value of ``name`` in the metadata of an attempt, of the first node that has it; None where none has."""
        return next((json.loads(found[name]) for found in self.metadata(attempt) if name in found), None)

    def _of_node_0(self, name: str, attempt: int) -> Any:
        """The value of ``name`` in the metadata of an attempt of node 0's task, which alone has it; None without it."""
        found = self._metadata_of(0, attempt) or {}
        return json.loads(found[name]) if name in found else None

    def _metadata_of(self, node: int, attempt: int) -> dict[str, str] | None:
        """The metadata of an attempt of a node's task, asked for once; None where it has none."""
        if node not in self.tasks:
            return None
        if (node, attempt) not in self._found:
            found = _metadata(Task(self.tasks[node].pathspec, attempt=attempt))
            self._found[node, attempt] = found if attempt == int(found.get("attempt", attempt)) else None
        return self._found[node, attempt]

    def _first_tasks(self) -> Iterable[Any]:
        """Node 0's task, or any other where that has not begun."""
        return [task for _, task in sorted(self.tasks.items())][:1]


def _metadata(task: Any) -> dict[str, str]:
    found: dict[str, str] = task.metadata_dict
    return found


def gangs_of(pathspec: str, where: str | None) -> list[GangOfRun]:
    """The gangs of a run, of a step, or of a task, whichever node's.

    Parameters
    ----------
    pathspec : str
    where : str, optional
        Metaflow's metadata: "local@FOLDER" or "service@URL".

    Raises
    ------
    NotFound
    """
    names = [name for name in pathspec.split("/") if name]
    if not 1 <= len(names) <= 4:
        raise NotFound(f"{pathspec!r} is no path to a run: write Flow/run, Flow/run/step or Flow/run/step/task.")
    namespace(None)
    try:
        if where:
            _look_in(where)
        steps = list(_steps(names))
        found = [gang for step in steps for gang in _gangs(step)]
    except MetaflowNotFound:
        raise NotFound(_missing(names)) from None
    except MetaflowException as error:
        raise NotFound(f"Metaflow cannot look for {pathspec}: {error}") from None
    except OSError as error:  # requests raises it where the service that is configured does not answer
        raise NotFound(f"Metaflow's metadata ({get_metadata()}) cannot be asked for {pathspec}: {error}") from None
    if len(names) == 4:
        wanted = place_of_task(names[3])[0]
        found = [gang for gang in found if gang.control == wanted]
    if not found:
        run = "/".join(names[:2])
        raise NotFound(
            f"{'/'.join(names)} has no gang: no task of it belongs to a step with @gang, @torchrun or the like, or its "
            f"gang has not begun. Metaflow itself has the logs of other steps: python flow.py logs {run.split('/')[-1]}"
            "/STEP."
        )
    return found


def _look_in(where: str) -> None:
    """Have Metaflow's client look in ``where``. Raises NotFound where that is no place with metadata."""
    try:
        metadata(where)
    except (ValueError, OSError) as error:
        raise NotFound(
            f"--metadata {where} is no place with Metaflow's metadata: {str(error).rstrip('.')}. Write local@FOLDER, "
            "with the folder in which the run was started, or service@URL."
        ) from None


def _steps(names: list[str]) -> Iterator[Any]:
    if len(names) == 1:
        run = Flow(names[0]).latest_run
        if run is None:
            raise MetaflowNotFound("no run")
        yield from sorted(run, key=lambda step: step.created_at)
    elif len(names) == 2:
        yield from sorted(Run("/".join(names)), key=lambda step: step.created_at)
    else:
        if len(names) == 4:
            Task("/".join(names))  # raises where there is none
        yield Step("/".join(names[:3]))


def _gangs(step: Any) -> list[GangOfRun]:
    tasks = list(step)
    places = [(*place_of_task(task.id), task) for task in tasks]
    if all(node == 0 for _, node, _ in places) and not any(map(_is_of_a_gang, tasks[:LOOKED_AT])):
        return []
    found: dict[str, GangOfRun] = {}
    for control, node, task in places:
        found.setdefault(control, GangOfRun(step.pathspec, control)).tasks[node] = task
    return list(found.values())


def _is_of_a_gang(task: Any) -> bool:
    return any(name in _metadata(task) for name in (FAILURE, PHASES))


def _missing(names: list[str]) -> str:
    """Which part of a path there is none of."""
    kinds = ("flow", "run", "step", "task")
    for count, (kind, known) in enumerate(zip(kinds, (Flow, Run, Step, Task), strict=True), start=1):
        part = "/".join(names[:count])
        try:
            known(part)
        except MetaflowException:
            within = (
                f"{'/'.join(names[: count - 1])} has" if count > 1 else f"Metaflow's metadata ({get_metadata()}) has"
            )
            return f"{within} no {kind} {names[count - 1]!r}. {_advice(names[: count - 1])}"
        if count == len(names):
            break
    return f"{'/'.join(names)} has no run yet."


def _advice(found: list[str]) -> str:
    """What there is in the run or step that was found; where to look, without one."""
    if len(found) < 2:
        return (
            "Runs with local metadata are known in the folder in which they were started; --metadata names another "
            "place (local@FOLDER, service@URL)."
        )
    part = "/".join(found)
    there = [child.id for child in (Run(part) if len(found) == 2 else Step(part))][::-1]
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    return f"Its {'steps' if len(found) == 2 else 'tasks'}: {', '.join(there[:NAMED])}{more}."
