"""How a gang comes to be, as one node's task sees it: the private folder, the meeting place, the join."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from metaflow import current

from ..exceptions import GangException, GangFailed
from ..gang.gang import Gang, Node, lease_port
from ..guard.host.owned_files import remove_folder
from ..guard.host.private_folder import in_base, temporary_folder
from ..guard.processes.process_table import GANG_MARKER
from ..guard_client.link import INTERRUPT, STACKS, Link
from ..logs import say
from ..machine.gpus import cpu_count, gpu_count
from ..machine.network import NoRoute, own_address_within
from ..metaflow_compat import environment
from ..rendezvous import absence_report, local_nodes
from ..rendezvous.datastore_meeting import DatastoreMeeting, MeetingFailed
from . import nested_run, run_interrupt
from .exception_record import record
from .termination import LOADED, Preemption

if TYPE_CHECKING:
    from .decorator import GangDecorator

_LOOK_S = 1.0
"""Seconds between two looks at the meeting place while nodes are missing."""

_UNFIT_S = 30.0
"""How long a node that cannot take part waits for node 0 to tell it, before it leaves word and goes."""

_ROOM = 64 * 1024
"""Bytes that the private folder has to take, or the gang is not begun: keys, hostfiles and the like are smaller."""


def end_stdin() -> None:
    """Have this task read an end of file from its stdin, as the other nodes of a gang do, unless it is a terminal's.

    A run starts node 0's task with a pipe there that nobody writes to or closes: ``input()`` would wait for ever.
    """
    with contextlib.suppress(OSError):  # closed: nothing may be opened in its place
        if os.isatty(0) or stat.S_ISREG(os.fstat(0).st_mode):
            return
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing:
        os.dup2(nothing, 0, inheritable=True)
        os.close(nothing)
    else:
        os.set_inheritable(0, True)


class Forming:
    """The first part of a node's :class:`~.lifecycle.Lifecycle`, which has the parameters.

    Attributes
    ----------
    _node : int
        This node's index, known once it forms.
    _folder : str
        Its private folder; "" before there is one.
    _gang_id : str
        What marks the gang's processes.
    _meeting : DatastoreMeeting or None
        Where this gang meets, on control of a gang that is not local.
    _joined : bool
        Whether all nodes have joined, this one among them.
    _unfit : Exception or None
        Why this node will not run the body.
    """

    def __init__(self, decorator: GangDecorator, num_nodes: int, is_control: bool) -> None:
        self._decorator = decorator
        self._task = decorator.task
        self._num_nodes = num_nodes
        self._is_control = is_control
        self._node = 0
        self._folder = ""
        self._gang_id = ""
        self._meeting: DatastoreMeeting | None = None
        self._preemption = Preemption()
        self._run: int | None = None
        self._unfit: Exception | None = None
        self._who = "the step's body"
        self._joined = False

    def cannot_take_part(self, error: Exception, who: str) -> None:
        """This node will not run the body: ``who`` has raised ``error``. It joins only to tell that."""
        self._unfit, self._who = error, who

    def _check_the_start(self) -> None:
        """What can be known before there is a guard. Raises GangException where this task has to form no gang."""
        nested_run.refuse_to_nest(nested_run.attempt_of(self._task))
        end_stdin()
        if environment.is_local() and self._is_control:
            if local_nodes.is_of_a_run(self._task.task_id):
                self._run = run_interrupt.run_of()
                run_interrupt.refuse_without_a_run(self._run)
            else:
                self._run = os.getppid()

    def _form(self, link: Link) -> Gang:
        attributes = self._decorator.attributes
        timeout = float(attributes["all_nodes_started_timeout"])
        if environment.is_local():
            self._prepare_local()
        if self._num_nodes == 1:
            environment.assume_one_node()
        self._node = environment.node_index(self._is_control)
        task, control_task = self._task, environment.control_task(self._task.task_id)
        identity = [task.flow_name, task.run_id, task.step_name, control_task, task.attempt]
        self._gang_id = self._gang_id or os.environ.get(GANG_MARKER, "").rpartition(".")[0] or secrets.token_hex(8)
        os.environ[GANG_MARKER] = f"{self._gang_id}.{self._node}"
        self._folder = self._make_folder()
        nested_run.mark_what_is_started(task, link.guard_pid, self._folder)
        link.request(
            "setup",
            node=self._node,
            folder=self._folder,
            gang_id=self._gang_id,
            number=link.number,
            interrupt_signal=int(INTERRUPT),
            stacks_signal=int(STACKS),
            watch_parent=self._run,
            notice_program=absence_report.notice_program(self._is_control) if self._num_nodes > 1 else None,
            seen_by_control=local_nodes.MEETING_VARIABLE in os.environ,
            notice=current.get("spot_termination_notice"),
            since=LOADED,
            sigterm=link.sigterm_read,
            end_timeout=float(self._decorator.attributes["end_timeout"]),
            unkillable_timeout=self._decorator.unkillable_timeout,
        )
        begun = time.monotonic()
        try:
            host = own_address_within(environment.main_address(), timeout, say)
        except NoRoute as error:
            raise GangException(f"Node {self._node} finds no way to node 0 ({environment.MAIN_IP}). {error}") from None
        if not self._is_control:  # whose own address is known at once, and who tells of the time as the step names it
            timeout = max(1.0, timeout - (time.monotonic() - begun))
        where = self._open(link, identity, host, timeout) if self._is_control else self._find(timeout, control_task)
        info: dict[str, Any] = {"hostname": socket.gethostname(), "cpus": cpu_count(), "gpus": gpu_count()}
        if self._is_control:
            info["offer"] = self._decorator.offer(partial(lease_port, link))
        joining: dict[str, Any] = {"identity": identity, "info": info, "timeout": timeout, "host": host, **where}
        joining["timeouts"] = self._timeouts()
        if self._unfit is not None:
            joining["failure"] = {"node": self._node, "time": time.time(), **record(self._unfit, self._who)}
        header = self._join(link, joining, control_task)
        self._joined = True
        absence_report.settle()
        if self._meeting is not None and self._is_control:
            self._meeting.close()
        nodes = tuple(
            Node(index, node["address"], node["hostname"], node["cpus"], node["gpus"])
            for index, node in enumerate(header["nodes"])
        )
        offer = header["nodes"][0].get("offer", {})
        return Gang(self._node, nodes, self._folder, link, _preemption=self._preemption, _offer=offer)

    def _make_folder(self) -> str:
        """The node's private folder. Raises GangException where the temporary folder cannot take it."""
        folder = ""
        try:
            folder = in_base("gangs", lambda base: tempfile.mkdtemp(prefix=f"{self._gang_id}-{self._node}-", dir=base))
            probe = os.path.join(folder, "probe")
            with open(probe, "wb") as file:
                file.write(bytes(_ROOM))
            os.unlink(probe)
        except OSError as error:
            remove_folder(folder)
            if isinstance(error, PermissionError) and error.errno is None:
                raise GangException(str(error)) from None
            raise GangException(
                f"Node {self._node} ({socket.gethostname()}) cannot use its temporary folder {temporary_folder()}: "
                f"{error.strerror or error}. Make room there, or set TMPDIR to another folder."
            ) from None
        return folder

    def _prepare_local(self) -> None:
        """Control of a local gang decides what the other nodes are told by their environment."""
        if not self._is_control:
            return
        local_nodes.write_whole_lines()
        self._gang_id = local_nodes.gang_id(self._task.task_id)
        self._environments = local_nodes.node_environments(
            self._num_nodes, self._decorator.gpus, self._task.task_id, self._gang_id
        )
        os.environ.update(self._environments[0])

    def _open(self, link: Link, identity: list[Any], host: str, timeout: float) -> dict[str, Any]:
        header, _ = link.request(
            "open",
            num_nodes=self._num_nodes,
            local=environment.is_local(),
            timeout=timeout,
            identity=identity,
            host=host,
            timeouts=self._timeouts(),
        )
        if "error" in header:
            raise GangException(header["error"])
        where = {key: header[key] for key in ("address", "port", "secret")}
        announcement = json.dumps(where).encode()
        datastore = self._decorator.flow_datastore
        if environment.is_local():
            tasks = local_nodes.node_tasks(self._task, self._decorator.input_paths, self._environments)
            limit = self._decorator.log_bytes
            saver = local_nodes.log_saver(datastore, self._task, self._num_nodes, self._folder, limit)
            variable = local_nodes.MEETING_VARIABLE
            link.request("start-nodes", announcement, tasks=tasks, saver=saver, meeting_variable=variable)
        else:
            self._meeting = self._datastore_meeting(self._task.task_id)
            self._meeting.publish(announcement)
        return where

    def _timeouts(self) -> list[float]:
        """How long other nodes may be silent; node 0's count for all."""
        attributes = self._decorator.attributes
        return [attributes["lost_host_timeout"], attributes["frozen_node_timeout"]]

    def _join(self, link: Link, joining: dict[str, Any], control_task: str) -> dict[str, Any]:
        """The list of nodes, once all have joined. Until then this node looks at the meeting place for what those have
        left who will not join. The nodes of a local gang need not: control's guard sees their ends.
        """
        wait = None if environment.is_local() or self._num_nodes == 1 else _LOOK_S
        header, _ = link.request("join", wait=wait, **joining)
        while "nodes" not in header:
            if self._meeting is not None:
                word = self._meeting.word()
                if word is not None:
                    link.request("node-failed", failure=word)
            elif not header["connected"]:
                story = self._datastore_meeting(control_task).story()
                if story:
                    raise GangFailed(story)
            header, _ = link.request("joined", wait=wait)
        return header

    def _find(self, timeout: float, control_task: str) -> dict[str, Any]:
        if local_nodes.MEETING_VARIABLE in os.environ:
            return dict(json.loads(local_nodes.read_meeting()))
        started = time.monotonic()
        patience = timeout if self._unfit is None else min(timeout, _UNFIT_S)
        try:
            where = dict(json.loads(self._datastore_meeting(control_task).poll(patience)))
        except MeetingFailed as error:
            raise GangFailed(str(error)) from None
        where["timeout"] = max(1.0, timeout - (time.monotonic() - started))
        return where

    def leave_word(self, error: Exception, who: str) -> None:
        """At the meeting place, for those who wait: this node will not join. Nothing is done where nodes are local."""
        if environment.is_local() or self._num_nodes == 1:
            return
        node, control_task = environment.node_index(self._is_control), environment.control_task(self._task.task_id)
        absence_report.leave_word(self._datastore_meeting(control_task), node, record(error, who))

    def _datastore_meeting(self, control_task: str) -> DatastoreMeeting:
        task = self._task
        return DatastoreMeeting(
            self._decorator.flow_datastore, task.flow_name, task.run_id, task.step_name, control_task, task.attempt
        )
