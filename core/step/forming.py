"""Forming a gang, from one node's task: the private folder, the meeting place and the join."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import tempfile
import time
from dataclasses import astuple
from functools import partial
from typing import Any

from metaflow import current

from ..debug_logs import DebugLogs
from ..exceptions import GangException, GangFailed
from ..export.task_export import exports
from ..gang.gang import SCRATCH, SCRATCH_VARIABLE, TRACES, TRACES_VARIABLE, Gang, lease_port
from ..gang.node import Node
from ..guard.host.owned_files import remove_folder
from ..guard.host.private_folder import in_base, temporary_folder
from ..guard.processes.process_table import GANG_MARKER
from ..guard.samples.user_metrics import FILE, FILE_VARIABLE
from ..guard_client.link import INTERRUPT, STACKS, Link
from ..logs import say
from ..machine.gpus import cpu_count, gpu_count
from ..machine.network import NoRoute, own_address_within
from ..metaflow_compat import environment
from ..rendezvous import absence_report, local_nodes
from ..rendezvous.datastore_meeting import DatastoreMeeting, MeetingFailed
from . import nested_run, run_interrupt
from .exception_record import exception_record
from .gang_task import GangTask
from .launcher_hooks import LauncherHooks
from .termination import LOADED, SigtermHandler

_LOOK_S = 1.0
"""Seconds between two reads of the meeting place while nodes are missing."""

_UNFIT_S = 30.0
"""Seconds that a node that cannot take part waits for node 0, before it writes a report and ends."""

_ROOM = 64 * 1024
"""Bytes that have to fit into the private folder, or no gang is formed; keys, hostfiles and the like are smaller."""


def end_stdin() -> None:
    """Replace this task's stdin by an empty one, as other nodes have it, unless it is a terminal or a file.

    A run starts node 0's task with a pipe that nobody writes to or closes: ``input()`` would wait for ever.
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
    """The first part of a node's :class:`~.lifecycle.Lifecycle`, which documents the parameters.

    Attributes
    ----------
    _node : int
        This node's index, known once it forms.
    _folder : str
        Its private folder; "" before there is one.
    _gang_id : str
        The id in the environment of all processes of the gang.
    _meeting : DatastoreMeeting or None
        The meeting place, on node 0 of a gang that is not local.
    _joined : bool
        Whether all nodes have joined, this one among them.
    _debug_logs : DebugLogs or None
        Stores the guard's debug log, where it keeps one.
    _unfit : Exception or None
        Why this node will not run the body.
    """

    def __init__(self, task: GangTask, hooks: LauncherHooks) -> None:
        self._settings = task
        self._hooks = hooks
        self._task = task.info
        self._num_nodes = task.num_nodes
        self._is_control = task.is_control
        self._node = 0
        self._folder = ""
        self._gang_id = ""
        self._meeting: DatastoreMeeting | None = None
        self._sigterm = SigtermHandler()
        self._run: int | None = None
        self._unfit: Exception | None = None
        self._who = "the step's body"
        self._joined = False
        self._debug_logs: DebugLogs | None = None
        self._has_export = False

    def cannot_take_part(self, error: Exception, who: str) -> None:
        """Have this node not run the body, since ``who`` has raised ``error``: it joins only to report that."""
        self._unfit, self._who = error, who

    def _check_the_start(self) -> None:
        """Check what needs no guard. Raises :class:`GangException` where this task must not form a gang."""
        nested_run.refuse_to_nest(nested_run.attempt_of(self._task))
        end_stdin()
        if environment.is_local() and self._is_control:
            if local_nodes.is_of_a_run(self._task.task_id):
                self._run = run_interrupt.run_of()
                run_interrupt.refuse_without_a_run(self._run)
            else:
                self._run = os.getppid()

    def _form(self, link: Link) -> Gang:
        timeout = self._settings.join_timeout
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
        os.environ[FILE_VARIABLE] = os.path.join(self._folder, FILE)
        os.environ[SCRATCH_VARIABLE] = os.path.join(self._folder, SCRATCH)
        os.environ[TRACES_VARIABLE] = os.path.join(self._folder, TRACES)
        nested_run.mark_what_is_started(task, link.guard_pid, self._folder)
        if self._settings.debug:
            names = ("flow", "run", "step", "task", "attempt")
            self._debug_logs = DebugLogs(
                self._settings.flow_datastore, dict(zip(names, astuple(task), strict=True)), self._node, self._folder
            )
            self._debug_logs.announce()
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
            settings=self._settings.guard_settings,
            debug_saver=self._debug_logs.saver() if self._debug_logs is not None else None,
        )
        export = exports(task, self._settings.launcher, self._node, environment.is_local(), cpu_count())
        if export is not None:
            self._has_export = True
            link.request("export", **export)
        begun = time.monotonic()
        try:
            host = own_address_within(environment.main_address(), timeout, say)
        except NoRoute as error:
            raise GangException(f"Node {self._node} finds no way to node 0 ({environment.MAIN_IP}). {error}") from None
        if not self._is_control:
            timeout = max(1.0, timeout - (time.monotonic() - begun))
        where = self._open(link, identity, host, timeout) if self._is_control else self._find(timeout, control_task)
        cpus, gpus = cpu_count(), gpu_count()
        info: dict[str, Any] = {"hostname": socket.gethostname(), "cpus": cpus, "gpus": gpus}
        info |= self._settings.preflight.info(gpus, cpus)
        if self._is_control:
            info["offer"] = self._hooks.offer(partial(lease_port, link))
        joining: dict[str, Any] = {"identity": identity, "info": info, "timeout": timeout, "host": host, **where}
        if self._unfit is not None:
            joining["failure"] = {"node": self._node, "time": time.time(), **exception_record(self._unfit, self._who)}
        header = self._join(link, joining, control_task)
        self._joined = True
        absence_report.no_more_reports()
        if self._meeting is not None and self._is_control:
            self._meeting.close()
        nodes = tuple(
            Node(index, node["address"], node["hostname"], node["cpus"], node["gpus"])
            for index, node in enumerate(header["nodes"])
        )
        offer = header["nodes"][0].get("offer", {})
        gang = Gang(self._node, nodes, self._folder, link, _save_functions=self._sigterm.save_functions, _offer=offer)
        gang._left_out.update({int(node): why for node, why in header["left_out"].items()})
        most = self._hooks.may_leave_out(self._num_nodes)
        self._settings.preflight.check(gang, header["facts"], environment.is_local(), most, gang._left_out)
        return gang

    def _make_folder(self) -> str:
        """Make the node's private folder. Raises :class:`GangException` where the temporary folder has no room."""
        folder = ""
        try:
            folder = in_base("gangs", lambda base: tempfile.mkdtemp(prefix=f"{self._gang_id}-{self._node}-", dir=base))
            probe = os.path.join(folder, "probe")
            with open(probe, "wb") as file:
                file.write(bytes(_ROOM))
            os.unlink(probe)
            for name in (SCRATCH, TRACES):
                os.mkdir(os.path.join(folder, name), 0o700)
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
        """On node 0 of a local gang: set the environment of all nodes."""
        if not self._is_control:
            return
        local_nodes.write_whole_lines()
        self._gang_id = local_nodes.gang_id(self._task.task_id)
        self._environments = local_nodes.node_environments(
            self._num_nodes, self._settings.gpus, self._task.task_id, self._gang_id
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
            may_leave_out=0 if environment.ends_with_a_task() else self._hooks.may_leave_out(self._num_nodes),
            card=self._settings.card.program() if self._settings.card is not None else None,
        )
        if "error" in header:
            raise GangException(header["error"])
        where = {key: header[key] for key in ("address", "port", "secret")}
        announcement = json.dumps(where).encode()
        datastore = self._settings.flow_datastore
        if environment.is_local():
            tasks = local_nodes.node_tasks(self._task, self._settings.input_paths, self._environments)
            limit = self._settings.log_bytes
            saver = local_nodes.log_saver(
                datastore, self._task, self._num_nodes, self._folder, limit, self._settings.metadata.spec()
            )
            variable = local_nodes.MEETING_VARIABLE
            link.request("start-nodes", announcement, tasks=tasks, saver=saver, meeting_variable=variable)
        else:
            self._meeting = self._datastore_meeting(self._task.task_id)
            self._meeting.publish(announcement)
        return where

    def _join(self, link: Link, joining: dict[str, Any], control_task: str) -> dict[str, Any]:
        """Join, and return the answer that has the list of nodes.

        Until all have joined, this node reads the meeting place for reports of those that will not join. The nodes of a
        local gang need not: node 0's guard sees their ends.
        """
        wait = None if environment.is_local() or self._num_nodes == 1 else _LOOK_S
        header, _ = link.request("join", wait=wait, **joining)
        while "nodes" not in header:
            if self._meeting is not None:
                others = range(1, self._num_nodes) if self._hooks.may_leave_out(self._num_nodes) else ()
                for failure in self._meeting.new_failures(others):
                    link.request("node-failed", failure=failure)
            elif not header["connected"]:
                report = self._datastore_meeting(control_task).failure_of_gang()
                if report:
                    raise GangFailed(report)
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

    def report_absence(self, error: Exception, who: str) -> None:
        """Report at the meeting place that this node will not join; does nothing in a local gang."""
        if environment.is_local() or self._num_nodes == 1:
            return
        node, control_task = environment.node_index(self._is_control), environment.control_task(self._task.task_id)
        absence_report.report_absence(self._datastore_meeting(control_task), node, exception_record(error, who))

    def _datastore_meeting(self, control_task: str) -> DatastoreMeeting:
        task = self._task
        return DatastoreMeeting(
            self._settings.flow_datastore, task.flow_name, task.run_id, task.step_name, control_task, task.attempt
        )
