"""How a gang lives, as one node's task sees it: meet, join, work, and end or fail. One object per attempt."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..exceptions import GangException, GangFailed, GangInterrupt, GuardDied
from ..guard.host.owned_files import remove_in_its_stead
from ..guard_client.link import Link
from ..logs import save_node_logs, say, say_and_store
from ..metaflow_compat import environment, tasks
from ..rendezvous import absence_report, local_nodes
from .exception_record import record, shorten
from .forming import Forming

if TYPE_CHECKING:
    from .decorator import GangDecorator


class Lifecycle(Forming):
    """One attempt of a gang on this node.

    Parameters
    ----------
    decorator : GangDecorator
        Whose step it is: attributes, what to put on ``current``, who runs the body.
    flow : FlowSpec
        Where control keeps the names of the tasks that the join step gets.
    num_nodes : int
    is_control : bool
    """

    def __init__(self, decorator: GangDecorator, flow: Any, num_nodes: int, is_control: bool) -> None:
        super().__init__(decorator, num_nodes, is_control)
        self._flow = flow
        self._link: Link | None = None
        self.begun = self._in_body = self._body_done = self._has_failed = False
        self._story = ""
        self.raised: BaseException | None = None
        """What :meth:`run` has raised."""

    # -- the whole life ----------------------------------------------------------------------------------------------

    def run(self, step_function: Callable[[], None]) -> None:
        """Form the gang, run the body, and wait for the others as far as they matter to this node.

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
            # There is no hub yet: local nodes are not started, and others look at the meeting place.
            self.leave_word(self._unfit, self._who)
            raise self._unfit
        try:
            link = self._link = Link(self._decorator.interrupt)
            self._preemption.listen(link.sigterm_pipe)
            if self._decorator.replaces_sigterm or self._decorator.sigterm_module:
                self._preemption.keep(self._decorator.sigterm_module)
            gang = self._form(link)
            if self._unfit is not None:
                raise self._unfit
            self._decorator.appear(gang)
            if self._decorator.runs_on_control_only and not gang.is_control:
                link.request("hold")
            else:
                if self._decorator.runs_on_control_only and self._decorator.tolerates_lost_nodes():
                    link.request("tolerate")
                self._in_body = True
                step_function()
                self._decorator.leave(ok=True)
                self._in_body = False
            link.request("done")
            self._body_done = True
            if self._is_control:
                header, _ = link.request("finish")
                self._leave_out(header["lost"])
                self._store_logs(link)
            link.quiet()
        except BaseException as error:
            try:
                # Within the try: an interrupt that came while the body was in C is raised by the first call from here.
                is_node = self._shield()
            except (GangInterrupt, KeyboardInterrupt):
                is_node = self._shield()
            if not is_node:
                raise
            if self._in_body:
                self._decorator.leave(ok=False)
            if self._unfit is not None and not isinstance(error, GuardDied):
                error = self._unfit
            raise self._failed(error) from (error if isinstance(error, GangException) else error.__cause__)
        finally:
            self._preemption.end()

    @property
    def has_others(self) -> bool:
        """Whether the gang has other nodes."""
        return self._num_nodes > 1

    def tell_before_the_body(self, error: Exception, who: str) -> None:
        """The body will not run here, since ``who`` has raised ``error`` before: let those know who wait for this node,
        and raise it.
        """
        self.cannot_take_part(error, who)
        self.run(lambda: None)

    def finished(self, task_ok: bool) -> None:
        """Metaflow has stored this task's state."""
        if self._link is not None:
            with contextlib.suppress(GangException, GangInterrupt):
                try:
                    self._link.request("bye" if task_ok and not self._has_failed else "stored")
                except GuardDied:
                    self._clean_up_after_guard(self._link, logs=False)
            self._link.close()
            self._link = None

    def failed_outside(self, error: Exception) -> None:
        """Something around the body raised after it had ended well: the others must not count on this node."""
        if self._link is not None and self._body_done and not self._has_failed:
            with contextlib.suppress(GangException, GangInterrupt):
                self._link.request("fail", **record(error, "Metaflow, after the step's body,"))

    def _leave_out(self, lost: list[int]) -> None:
        """A node that is lost has stored nothing: the join step, to which Metaflow gives these tasks, must not get it.

        They are in the order of their nodes, whoever has named them.
        """
        if lost:
            kept = [task for node, task in enumerate(tasks.joined_tasks(self._flow)) if node not in lost]
            tasks.set_joined_tasks(self._flow, kept)

    # -- failing -----------------------------------------------------------------------------------------------------

    def _shield(self) -> bool:
        """From here on neither the guard nor Ctrl-C, a second one perhaps, cuts short what the first one started.

        False, and nothing is done, in a process that the body forked: it is no node.
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
        """What this node raises in the end: its own exception where it is the cause, else the story of the cause."""
        shorten(error)
        link = self._link
        if link is None:
            self._close_the_meeting(error)
            return error
        try:
            raised = self._ask_for_the_story(link, error)
            if self._is_control:
                self._store_logs(link)
        except GuardDied as died:
            self._clean_up_after_guard(link, logs=True)
            raised = died
        if not environment.is_local():
            say_and_store(self._story or str(raised), self._decorator.task_datastore)
        elif self._decorator.aborts_with_others:
            say(self._story or str(raised))  # Metaflow, which would tell it in a moment, may not come to it
        self._close_the_meeting(raised)
        # The guard stays until Metaflow has stored that: it ends a task that does not come to its end.
        self._has_failed = True
        return raised

    def _close_the_meeting(self, raised: BaseException) -> None:
        """Who comes now finds the story there; and control, what became of a node that has failed before it joined."""
        absence_report.settle()
        if environment.is_local() or (self._num_nodes == 1 and self._meeting is None):
            return
        with contextlib.suppress(Exception):  # the datastore may be what failed; the attempt is in the key anyway
            meeting = self._meeting or self._datastore_meeting(environment.control_task(self._task.task_id))
            if self._is_control:
                meeting.close(self._story or str(raised))
            elif not self._joined and not isinstance(raised, GangFailed):
                absence_report.leave_word(meeting, environment.node_index(False), record(raised, self._who))

    def _clean_up_after_guard(self, link: Link, logs: bool) -> None:
        """What the guard would have done in the end, storing the other local nodes' ``logs`` included."""
        link.clean_up_after_guard(f"{self._gang_id}.{self._node}", outputs=self._run is not None)
        if logs and self._is_control and environment.is_local():
            self._save(local_nodes.log_paths(self._folder, self._num_nodes))
        if self._folder:
            remove_in_its_stead(self._folder)

    def _ask_for_the_story(self, link: Link, error: BaseException) -> BaseException:
        if isinstance(error, GuardDied):
            raise error
        if self._preemption.saves and link.request("unwinding")[0]["preempted"]:
            self._preemption.save()
        # Ray, where its C++ looks for signals, raises a KeyboardInterrupt of its own in place of ours.
        if isinstance(error, GangInterrupt) or (link.stopped and isinstance(error, KeyboardInterrupt)):
            header, _ = link.request("unwound")
            self._story = header["report"]
            return GangFailed(self._story)
        header, _ = link.request("fail", **record(error, self._who, self._decorator.peer_lost))
        # What another node has told already, by way of the meeting place, is no failure of this one.
        self._story = str(error) if isinstance(error, GangFailed) and not self._joined else header["report"]
        # Of an exit with code 0 Metaflow would make a step that has ended well.
        if any(cause["node"] == self._node for cause in header["causes"]) and not isinstance(error, SystemExit):
            return _with_sentences(error, header.get("left", ""), self._decorator.advice(error))
        return GangFailed(self._story)

    def _store_logs(self, link: Link) -> None:
        """Control of a local gang: the other nodes' output becomes the logs of their own tasks."""
        if not environment.is_local() or self._num_nodes == 1:
            return
        header, _ = link.request("tasks-gone")
        self._save(header["logs"])

    def _save(self, logs: dict[str, dict[str, str]]) -> None:
        ids = local_nodes.task_ids(self._task.task_id, self._num_nodes)
        task = self._task
        try:
            save_node_logs(
                self._decorator.flow_datastore,
                task.run_id,
                task.step_name,
                task.attempt,
                logs,
                {str(node): task_id for node, task_id in enumerate(ids)},
                self._decorator.log_bytes,
            )
        except Exception as error:  # whatever a datastore raises: the step's own end says more than its logs
            say(f"The logs of the other nodes could not be stored: {type(error).__name__}: {error}")


def _with_sentences(error: BaseException, *sentences: str) -> BaseException:
    """``error`` with what belongs to its story: in its message where that is ours, else in the log."""
    for sentence in filter(None, sentences):
        if isinstance(error, GangException):
            error.message = f"{error.message}\n{sentence}"
        else:
            say(sentence)
    return error
