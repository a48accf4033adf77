"""``GangDecorator``: Metaflow's hooks for a gang, which ``@gang`` and every launcher share, on top of @parallel."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from ..attributes import boolean, check_neighbours, check_scheduler, check_split, number_or_setting, requested
from ..card.task_card import TaskCard
from ..exceptions import BadAttribute, GangException
from ..gang.gang import Gang
from ..guard.processes.process_table import GANG_MARKER
from ..logs import say
from ..machine.network import require_tls
from ..machine.proxies import reach_nodes_directly
from ..metadata import TaskMetadata
from ..metaflow_compat.cards import take_over
from ..metaflow_compat.environment import control_task
from ..metaflow_compat.runs import started_task
from ..metaflow_compat.steps import ParallelDecorator, is_control, is_spun
from ..metaflow_compat.tasks import appear_on_current, foreach_depth, joined_tasks, num_nodes, set_joined_tasks
from ..preflight.preflight import Preflight
from ..rendezvous import absence_report
from ..rendezvous.local_nodes import CONTROL_MARKER, control_environment, task_ids
from ..rendezvous.task_info import TaskInfo
from ..settings.table import BY_NAME, CARD, DEBUG, TABLE, check_all, guard_settings
from ..settings.unknown import tell_unknown_settings
from ..storage.results import results_prefix
from . import run_interrupt
from .exception_record import exception_record
from .gang_task import GangTask
from .launcher_hooks import LauncherHooks
from .lifecycle import Lifecycle
from .live_output import show_lines_at_once
from .nested_run import is_started_by_a_body, refuse_to_nest

_BEFORE_BODY = "Metaflow or a decorator, before the step's body,"

_SKIPPED = (
    "A step decorator took the place of the step's body (skip_step, or a function of its own). The nodes of a gang run "
    "their step together: skip it by a branch before it, or decide in the body, on all nodes alike."
)

_CAUGHT = (
    "A step decorator has caught the failure of the step's body. A gang fails as one, so its failure cannot be caught "
    "on one node, and the step fails all the same. @retry works."
)


class GangDecorator(LauncherHooks, ParallelDecorator):  # type: ignore[misc]
    """
    Runs the step on all nodes of a cluster that lives as long as the step. Start it with
    `self.next(self.step_name, num_parallel=N)`.

    Parameters
    ----------
    all_nodes_started_timeout : float, optional, default 600
        Seconds in which all nodes must have joined, counted from this node's own start.
    lost_host_timeout : float, optional, default 30
        Seconds within which a host that no longer answers ends the gang. An interruption of the network that is
        shorter than two thirds of it ends nothing.
    frozen_node_timeout : float, optional, default 60
        Seconds after which a node that does not answer while its host does ends the gang: a paused container.
    stall_timeout : float, default 0
        Seconds without progress of any rank on any node after which the gang ends, and shows where all stand; 0 is off.
    card : bool, optional, default True
        Whether the step has a card that shows the gang, while the step runs and afterwards.
    preflight : bool | str, optional, default True
        Whether the nodes compare software and machines before the body; "full" also tries the network between them.
    end_timeout : float, optional, default 30
        Seconds that the end of the step, after its body, may take on a node once the gang has failed.

    MF Add To Current
    -----------------
    gang -> metaflow_extensions.gang.core.gang.gang.Gang
        This node's view of the gang.

        @@ Returns
        -------
        Gang
            `node_index`, `num_nodes`, `nodes`, `main_address`, `is_control`; `barrier()`, `all_gather()`, `gather()`,
            `broadcast()`, `free_port()`, `run()`, `stacks()`.
    """

    name = "gang"
    defaults: ClassVar[dict[str, Any]] = {
        "all_nodes_started_timeout": None,
        "card": None,
        "end_timeout": None,
        "preflight": None,
        "lost_host_timeout": None,
        "frozen_node_timeout": None,
        "stall_timeout": None,
    }

    task: TaskInfo
    flow_datastore: Any
    task_datastore: Any
    environment: Any
    input_paths: list[str]
    gpus: int | None = None
    cpus: int | None = None
    _metadata: TaskMetadata
    _lifecycle: Lifecycle | None = None
    _unfit: Exception | None = None
    """What :meth:`preflight` has raised."""
    _in_foreach = False
    _preflight: Preflight
    _is_spun = False  # whether this is a task of spin: a gang of one node, on however many the step runs otherwise
    _elsewhere = False
    """Whether the step's tasks run on a cluster, where Metaflow itself gives each node its index."""

    # -- Metaflow's hooks ----------------------------------------------------------------------------------------------

    def step_init(
        self, flow: Any, graph: Any, step: str, decos: list[Any], environment: Any, flow_datastore: Any, logger: Any
    ) -> None:
        check_all()
        super().step_init(flow, graph, step, decos, environment, flow_datastore, logger)
        refuse_to_nest()
        self.flow_datastore = flow_datastore
        check_scheduler(self, step)
        check_neighbours(self, step, decos)
        check_split(self.name, step, graph)
        self._elsewhere = any(other.name in ("batch", "kubernetes", "slurm") for other in decos)
        for setting in TABLE:
            if setting.attribute:
                self.attributes[setting.name] = number_or_setting(self, setting.name)
        self.settings = guard_settings(self.attributes)
        self.log_bytes = int(BY_NAME["log_megabytes"].read() * (1 << 20))
        self.debug = DEBUG.read()
        wants_card = CARD.read() if self.attributes["card"] is None else boolean(self, "card")
        self.cards = take_over(step, decos) or ([None] if wants_card else [])
        self.gpus, self.cpus = requested(decos, "gpu"), requested(decos, "cpu")
        self._preflight = Preflight.of(self)
        self.check_attributes()
        run_interrupt.heed_one_interrupt()
        absence_report.expect_step(step)

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        super().runtime_init(flow, graph, package, run_id)
        run_interrupt.pass_on_interrupts()
        show_lines_at_once()
        tell_unknown_settings(os.environ)

    def runtime_step_cli(
        self, cli_args: Any, retry_count: int, max_user_code_retries: int, ubf_context: str | None
    ) -> None:
        super().runtime_step_cli(cli_args, retry_count, max_user_code_retries, ubf_context)
        if is_control(ubf_context):
            name = secrets.token_hex(8)
            task, nodes, env = started_task(cli_args)
            env[CONTROL_MARKER] = str(os.getpid())
            env[GANG_MARKER] = f"{name}.0"
            if not self._elsewhere:
                env.update(control_environment(nodes, self.gpus, task, name, {**os.environ, **env}))

    def task_pre_step(
        self,
        step_name: str,
        task_datastore: Any,
        metadata: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
        inputs: Any,
    ) -> None:
        self._is_spun = is_spun(metadata)
        if num_nodes(flow, self._is_spun) == 0:
            raise BadAttribute(f"Step *{step_name}* has no node: num_parallel has to be 1 or more.")
        if self._is_spun:
            self.input_paths = []
            appear_on_current({"is_parallel": True})
        else:
            before = (step_name, task_datastore, metadata, run_id, task_id, flow, graph)
            super().task_pre_step(*before, retry_count, max_user_code_retries, ubf_context, inputs)
        if self._elsewhere and is_control(ubf_context):
            tell_unknown_settings(os.environ)  # the variables of the run are not there
        self.task = TaskInfo(flow.name, str(run_id), step_name, str(task_id), int(retry_count))
        self.task_datastore = task_datastore
        self._metadata = TaskMetadata(metadata, self.task.run_id, step_name, self.task.task_id, self.task.attempt)
        try:
            require_tls()
            self.preflight()
        except Exception as error:
            # The other nodes would wait for this one: it joins, and reports the failure to them.
            self._unfit = error

    def task_decorate(
        self,
        step_func: Callable[[], None],
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
    ) -> Callable[[], None]:
        # The nodes are one level of the stack themselves.
        self._in_foreach = foreach_depth(flow) > 1
        nodes, on_control = num_nodes(flow, self._is_spun), is_control(ubf_context) or self._is_spun
        self._lifecycle = Lifecycle(self._gang_task(nodes, on_control), self, self.appear, partial(_leave_out, flow))
        if self._unfit is not None:
            self._lifecycle.cannot_take_part(self._unfit, "what the step needs")
        if on_control and not joined_tasks(flow):
            # Backends have set it by now; locally nobody else names the tasks that the join step gets.
            prefix = f"{self.task.run_id}/{self.task.step_name}/"
            set_joined_tasks(flow, [prefix + task_id for task_id in task_ids(self.task.task_id, nodes)])
        self._metadata.of_nodes = [path.rpartition("/")[2] for path in joined_tasks(flow)]
        return partial(self._lifecycle.run, step_func)

    def _gang_task(self, nodes: int, on_control: bool) -> GangTask:
        attributes = self.attributes
        return GangTask(
            self.task,
            nodes,
            on_control,
            self.flow_datastore,
            self.task_datastore,
            self.input_paths,
            self.gpus,
            join_timeout=float(attributes["all_nodes_started_timeout"]),
            guard_settings=self.settings,
            log_bytes=self.log_bytes,
            debug=self.debug,
            launcher=f"@{self.name}",
            metadata=self._metadata,
            preflight=self._preflight,
            card=TaskCard.of(self.flow_datastore, self.task, f"@{self.name}", self.cards[0])
            if on_control and self.cards
            else None,
        )

    def task_post_step(
        self, step_name: str, flow: Any, graph: Any, retry_count: int, max_user_code_retries: int
    ) -> None:
        if self._lifecycle is None:
            return
        if not self._lifecycle.begun and self._lifecycle.has_others:
            self._lifecycle.tell_before_the_body(GangException(_SKIPPED), "a step decorator")
        if self._lifecycle.raised is not None:
            say(_CAUGHT)
            raise self._lifecycle.raised

    def task_exception(
        self, exception: Exception, step_name: str, flow: Any, graph: Any, retry_count: int, max_user_code_retries: int
    ) -> bool | None:
        if self._lifecycle is None:
            failure = exception_record(exception, _BEFORE_BODY)
            absence_report.report_from_environment(failure["text"], failure["detail"], failure["kind"])
        elif self._lifecycle.begun:
            self._lifecycle.failed_outside(exception)
        else:
            with contextlib.suppress(Exception):  # it raises this exception again, or another node's
                self._lifecycle.tell_before_the_body(exception, _BEFORE_BODY)
        return None

    def task_finished(
        self, step_name: str, flow: Any, graph: Any, is_task_ok: bool, retry_count: int, max_retries: int
    ) -> None:
        if self._lifecycle is not None:
            self._lifecycle.finished(bool(is_task_ok))

    def results_prefix(self, suffix: str, attempt: int | None = None) -> str:
        """The prefix of a launcher's results in the flow's datastore; see :func:`~.results.results_prefix`.

        It is that of the older packages, for scripts that read it, but for a foreach, whose gangs would share a folder.
        """
        task = self.task
        control = control_task(task.task_id) if self._in_foreach else None
        return results_prefix(suffix, task.flow_name, task.run_id, task.step_name, control, attempt)

    def appear(self, gang: Gang) -> None:
        """Put the gang, and what the launcher has, on ``current``."""
        reach_nodes_directly([gang.main_address, *(node.address for node in gang.nodes if node.address)], os.environ)
        members = self.form(gang)
        if self.runs_on_control_only:
            gang = replace(gang, _only_on_control=f"@{self.name}")
        appear_on_current({"gang": gang, **members})


def _leave_out(flow: Any, lost: list[int]) -> None:
    """Remove the tasks of ``lost`` nodes, which have stored nothing, from those that the join step gets.

    The list is in the order of the nodes, on every backend.
    """
    if lost:
        set_joined_tasks(flow, [task for node, task in enumerate(joined_tasks(flow)) if node not in lost])


if not is_started_by_a_body():
    absence_report.report_an_early_end()  # now: the flow file is being loaded, and may fail
