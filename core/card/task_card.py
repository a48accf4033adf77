"""The card of one task's gang, from the task's side: the program that writes it, and the last state of a short step."""

from __future__ import annotations

import json
import os
import shlex
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import MetaflowChanged
from ..logs import say
from ..metaflow_compat.cards import card_root, card_store
from ..own_program import own_program
from ..rendezvous.task_info import TaskInfo
from . import writer


@dataclass(frozen=True)
class TaskCard:
    """The card of node 0's task.

    Parameters
    ----------
    flow_datastore : FlowDataStore
    task : TaskInfo
    launcher : str
        The decorator, as the user writes it: "@torchrun".
    card_id : str or None
        The user's name of the card: ``@card(type="gang", id=...)``.
    root : str or None
        Where Metaflow keeps cards, found out before the step's body, which may change the working folder.
    card : str
        By which Metaflow tells this card from others of the task.
    """

    flow_datastore: Any
    task: TaskInfo
    launcher: str
    card_id: str | None = None
    root: str | None = None
    card: str = field(default_factory=lambda: uuid.uuid4().hex[:20])

    @classmethod
    def of(cls, flow_datastore: Any, task: TaskInfo, launcher: str, card_id: str | None) -> TaskCard:
        """The card of a task whose body has not begun."""
        try:
            root = card_root(flow_datastore.TYPE)
        except MetaflowChanged:
            root = None  # storing the card will say so
        return cls(flow_datastore, task, launcher, card_id, root)

    @property
    def pathspec(self) -> str:
        """ "Flow/run/step/task"."""
        task = self.task
        return f"{task.flow_name}/{task.run_id}/{task.step_name}/{task.task_id}"

    @property
    def view_command(self) -> str:
        """What the user types to see the card: "python flow.py card view 12/train/3"."""
        task = self.task
        script = shlex.quote(os.path.basename(sys.argv[0]))
        mode = "--mode spin " if self.flow_datastore.TYPE == "spin" else ""
        return f"python {script} {mode}card view {task.run_id}/{task.step_name}/{task.task_id}"

    def program(self) -> dict[str, Any]:
        """The program that keeps the card up to date, for the guard, and what does not change on the card."""
        spec = {
            "flow": self.task.flow_name,
            "datastore": self.flow_datastore.TYPE,
            "root": self.flow_datastore.datastore_root,
            "pathspec": self.pathspec,
            "card": self.card,
            "id": self.card_id,
        }
        head = {"launcher": self.launcher, "pathspec": self.pathspec, "attempt": self.task.attempt}
        return {**own_program(writer.__name__, json.dumps(spec)), "head": head, "view": self.view_command}

    def store(self, snapshot: Mapping[str, Any]) -> None:
        """Store the last state: the step was over before that program had begun.

        Whatever a datastore raises is only said: the step itself has succeeded, or has its own failure.
        """
        try:
            datastore = self.flow_datastore
            place = (datastore.TYPE, datastore.datastore_root, self.pathspec, self.root)
            store = card_store(self.task.flow_name, *place)
            writer.Writer(store, self.card, self.card_id).write(dict(snapshot), True, 0.0)
        except Exception as error:
            say(f"The card of the gang could not be stored: {type(error).__name__}: {error}")
