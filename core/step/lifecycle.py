"""The life of a gang on one node, from its forming to its end or failure: one object per attempt."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ..exceptions import GangException, GangFailed, GangInterrupt, GuardDied
from ..gang.gang import Gang
from ..guard.failure_record import PREEMPTED, Failure
from ..guard.host.owned_files import remove_in_its_stead
from ..guard.stalls import stack_file
from ..guard_client.link import Link
from ..logs import save_node_logs, say, say_and_store
from ..metadata import FAILURE, TRACES
from ..metaflow_compat import environment
from ..rendezvous import absence_report, local_nodes
from ..storage.traces import NodeTraces
from .exception_record import exception_record, shorten, with_sentences
from .forming import Forming
from .gang_task import GangTask
from .launcher_hooks import LauncherHooks


class Lifecycle(Forming):
    """One attempt of a gang on this node.

    Parameters
    ----------
    task : GangTask
        This node's task, and the step's attributes.
    hooks : LauncherHooks
        What the launcher changes: who runs the body, what interrupts it, what to add to its failure.
    appear : callable
        Puts the gang, and what the launcher has, on ``current``.
    leave_out : callable
        Keeps the tasks of lost nodes, given by index, from the join step.
    """

    def __init__(
        self,
        task: GangTask,
        hooks: LauncherHooks,
        appear: Callable[[Gang], None],
        leave_out: Callable[[list[int]], None],
    ) -> None:
        super().__init__(task, hooks)
        self._appear = appear
        self._leave_out = leave_out
        self._link: Link | None = None
        self._traces: NodeTraces | None = None
        self.begun = self._in_body = self._body_done = self._has_failed = False
        self._failure_report = ""
        self._failure: dict[str, Any] | None = None  # as data
        self.raised: BaseException | None = None
        """What :meth:`run` has raised."""

    # -- the whole life ----------------------------------------------------------------------------------------------

    def run(self, step_function: Callable[[], None]) -> None:
        """Form the gang, run the body, and wait for the other nodes as long as the gang needs this one.

        Raises
        ------
        GangFailed
            Another node failed first.
        Exception
            This node's own, where it is the cause.
        """
        try:
            self._run_the_body(step_function)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            if self._link is not None:
                self._link.is_over = True

    def _run_the_body(self, step_function: Callable[[], None]) -> None:
        self.begun = True
        self._check_the_start()
        if self._unfit is not None and self._is_control:
            # There is no hub yet: local nodes are not started, and remote ones read the meeting place.
            self.report_absence(self._unfit, self._who)
            raise self._unfit
        try:
            link = self._link = Link(self._hooks.interrupt)
            self._sigterm.listen(link.sigterm_pipe)
            if self._hooks.replaces_sigterm or self._hooks.sigterm_module:
                self._sigterm.keep(self._hooks.sigterm_module)
            gang = self._form(link)
            self._traces = self._settings.traces(gang.node_index, gang.traces)
            if self._unfit is not None:
                raise self._unfit
            self._appear(gang)
            stack_file.register(self._folder, stack_file.BODY)
            link.request("formed")
            if self._hooks.runs_on_control_only and not gang.is_control:
                link.request("hold")
            else:
                if gang.is_control and self._hooks.tolerates_lost_nodes(self._num_nodes):
                    link.request("tolerate", only_nodes=not self._hooks.runs_on_control_only)
                self._in_body = True
                step_function()
                self._hooks.leave(ok=True)
                self._in_body = False
            link.request("done")
            self._body_done = True
            self._keep_traces(link, store=True)
            if self._is_control:
                header, _ = link.request("finish")
                self._leave_out(header["lost"])
                self._store_logs(link)
            link.quiet()
        except BaseException as error:
            try:
                # In the try: an interrupt that came while the body was in C code is raised by the first call here.
                is_node = self._shield()
            except (GangInterrupt, KeyboardInterrupt):
                is_node = self._shield()
            if not is_node:
                raise
            if self._in_body:
                self._hooks.leave(ok=False)
            if self._unfit is not None and not isinstance(error, GuardDied):
                error = self._unfit
            raise self._failed(error) from (error if isinstance(error, GangException) else error.__cause__)
        finally:
            self._sigterm.end()

    @property
    def has_others(self) -> bool:
        """Whether the gang has other nodes."""
        return self._num_nodes > 1

    def tell_before_the_body(self, error: Exception, who: str) -> None:
        """Report to the nodes that wait for this one that ``who`` has raised ``error`` before the body; raise it."""
        self.cannot_take_part(error, who)
        self.run(lambda: None)

    def finished(self, task_ok: bool) -> None:
        """Let the guard end: Metaflow has stored this task's state."""
        if self._link is not None:
            if self._has_failed and self._debug_logs is not None:
                self._debug_logs.store()  # again: more has happened since
            with contextlib.suppress(GangException, GangInterrupt):
                try:
                    record, _ = self._link.request("record")
                    self._settings.metadata.register_record(record)
                    if record["card"] is not None and self._settings.card is not None:
                        self._settings.card.store(record["card"])
                    if self._has_export:
                        self._link.request("export-last")
                    self._link.request("bye" if task_ok and not self._has_failed else "stored")
                except GuardDied:
                    self._clean_up_after_guard(self._link, logs=False)
            self._link.close()
            self._link = None

    def failed_outside(self, error: Exception) -> None:
        """Report ``error``, raised around the body after its end: the other nodes must not rely on this one."""
        if self._link is not None and self._body_done and not self._has_failed:
            with contextlib.suppress(GangException, GangInterrupt):
                self._link.request("fail", **exception_record(error, "Metaflow, after the step's body,"))

    # -- failing -----------------------------------------------------------------------------------------------------

    def _shield(self) -> bool:
        """From here on neither the guard nor another Ctrl-C interrupts this thread: the failure is being handled.

        Does nothing and returns False in a process that the body has forked, which is no node.
        """
        if self._link is None:
            return True
        if not self._link.is_ours:
            return False
        self._link.quiet()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return True

    def _failed(self, error: BaseException) -> BaseException:
        """What this node raises in the end: its own exception where that is the cause, else the failure report."""
        shorten(error)
        link = self._link
        if link is None:
            self._close_the_meeting(error)
            self._register(error)
            return error
        try:
            self._keep_traces(link, store=False)  # now: node 0 may write the card before they are stored
            raised = self._report_and_await_cause(link, error)
            self._keep_traces(link, store=True)
            if self._is_control:
                self._store_logs(link)
            self._store_debug_log()
        except GuardDied as died:
            self._store_debug_log()
            self._clean_up_after_guard(link, logs=True)
            raised = died
        if not environment.is_local():
            say_and_store(self._failure_report or str(raised), self._settings.task_datastore)
        elif self._hooks.aborts_with_others:
            # The framework may end this process before Metaflow prints the exception.
            say(self._failure_report or str(raised))
        self._close_the_meeting(raised)
        self._register(raised)
        # The guard stays until Metaflow has stored that, and ends a task that takes too long.
        self._has_failed = True
        return raised

    def _keep_traces(self, link: Link, store: bool) -> None:
        """Store the profiler's traces of this node's ranks, or just tell node 0, for the card, which there are."""
        found = None if self._traces is None else self._traces.store() if store else self._traces.look()
        if found is not None:
            link.request("traces", found=found)
            if store:
                self._settings.metadata.register({TRACES: found})

    def _store_debug_log(self) -> None:
        if self._debug_logs is not None:
            sentence = self._debug_logs.store()
            if sentence:
                say(sentence)

    def _register(self, raised: BaseException) -> None:
        """Keep the failure as metadata of this task, now: a cluster may end the task any moment."""
        if self._failure is None:  # nobody but this task knows of it
            record = exception_record(raised, self._who)
            self._failure = Failure(self._node, time=time.time(), **record).as_data(socket.gethostname())
        self._settings.metadata.register({FAILURE: self._failure})

    def _close_the_meeting(self, raised: BaseException) -> None:
        """Write to the meeting place why the gang has failed, or that this node will not join."""
        absence_report.no_more_reports()
        if environment.is_local() or (self._num_nodes == 1 and self._meeting is None):
            return
        with contextlib.suppress(Exception):  # the datastore may be what failed; the attempt is in the key anyway
            meeting = self._meeting or self._datastore_meeting(environment.control_task(self._task.task_id))
            if self._is_control:
                meeting.close(self._failure_report or str(raised))
            elif not self._joined and not isinstance(raised, GangFailed):
                absence_report.report_absence(
                    meeting, environment.node_index(False), exception_record(raised, self._who)
                )

    def _clean_up_after_guard(self, link: Link, logs: bool) -> None:
        """Do what the guard would have done at its end; with ``logs`` also store the other local nodes' logs."""
        link.clean_up_after_guard(f"{self._gang_id}.{self._node}", outputs=self._run is not None)
        if logs and self._is_control and environment.is_local():
            self._save(local_nodes.log_paths(self._folder, self._num_nodes))
        if self._folder:
            remove_in_its_stead(self._folder)

    def _report_and_await_cause(self, link: Link, error: BaseException) -> BaseException:
        if isinstance(error, GuardDied):
            raise error
        if self._sigterm.save_functions and link.request("unwinding")[0]["preempted"]:
            self._sigterm.save()
        # Ray's C++ code raises a KeyboardInterrupt of its own in place of ours.
        if isinstance(error, GangInterrupt) or (link.stopped and isinstance(error, KeyboardInterrupt)):
            header, _ = link.request("unwound")
            self._failure_report, self._failure = header["report"], header.get("failure")
            return GangFailed(self._failure_report)
        header, _ = link.request("fail", **exception_record(error, self._who, self._hooks.peer_lost))
        self._failure = header.get("failure")
        # A failure that this node has read at the meeting place is not its own.
        self._failure_report = str(error) if isinstance(error, GangFailed) and not self._joined else header["report"]
        # Metaflow takes a SystemExit with code 0 for a step that has ended well; and what a body that is told to end
        # raises is how its ranks were.
        is_own = not isinstance(error, SystemExit) and (self._failure or {}).get("kind") != PREEMPTED
        if is_own and any(cause["node"] == self._node for cause in header["causes"]):
            return with_sentences(error, header.get("left", ""), self._hooks.advice(error))
        return GangFailed(self._failure_report)

    def _store_logs(self, link: Link) -> None:
        """On node 0 of a local gang: store the other nodes' output as the logs of their tasks."""
        if not environment.is_local() or self._num_nodes == 1:
            return
        header, _ = link.request("tasks-gone")
        self._save(header["logs"])
        if self._failure is not None:
            ids = local_nodes.task_ids(self._task.task_id, self._num_nodes)
            for node in header["dead"]:
                self._settings.metadata.register({FAILURE: self._failure}, ids[node])

    def _save(self, logs: dict[str, dict[str, str]]) -> None:
        task = self._task
        ids = {str(node): task_id for node, task_id in enumerate(local_nodes.task_ids(task.task_id, self._num_nodes))}
        step = (self._settings.flow_datastore, task.run_id, task.step_name, task.attempt)
        try:
            save_node_logs(*step, logs, ids, self._settings.log_bytes)
        except Exception as error:  # whatever a datastore raises: the step's own end says more than its logs
            say(f"The logs of the other nodes could not be stored: {type(error).__name__}: {error}")
