"""`flow.py slurm step`: what a run starts in place of a task. It submits the job, follows it, and ends with it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from ...core.metaflow_compat import datastores, environment, metadata, task_logs
from ...core.metaflow_compat.configuration import configured
from ...core.rendezvous.local_nodes import task_ids
from ..metaflow_compat import code_package, step_command, task_environment
from ..metaflow_compat.step_command import click
from . import node_task
from .attributes import NAMES, Request, read
from .client.choice import choose
from .client.interface import Slurm
from .client.machine import Machine
from .decorator import FOLDER
from .exceptions import SlurmException, SlurmRefused
from .follow import Follower
from .job import Job, specification
from .sharing.arrays import BATCH
from .sharing.meeting import address
from .sharing.shared import SharedSlurm
from .submission import Watch, submit


def _command_of_task(context: Any, given: dict[str, Any], python: str, place: dict[str, str]) -> list[str]:
    """The words of one node's ``flow.py step``."""
    script = os.path.basename(sys.argv[0])
    flow = step_command.words(step_command.context_of_group(context))
    options = step_command.words({**{name: given[name] for name in step_command.FOR_THE_TASK}, **place})
    return [python, "-u", script, *flow, "step", given["step_name"], *options]


def _nodes(context: Any, given: dict[str, Any], python: str, folder: str) -> list[dict[str, Any]]:
    """What is different on each node: the task's command, and the variables that say which node it is."""
    obj, num_nodes = context.obj, given["num_parallel"]
    places: list[tuple[dict[str, str], dict[str, str]]]
    if num_nodes:
        control = given["task_id"]
        places = [
            (
                {
                    "task_id": task,
                    "split_index": str(node),
                    "ubf_context": step_command.context_of_node(node),
                },
                environment.place(node, num_nodes, control),
            )
            for node, task in enumerate(task_ids(control, num_nodes))
        ]
    else:
        split = {"split_index": given["split_index"]} if given["split_index"] else {}
        places = [({"task_id": given["task_id"], **split}, {})]
    nodes = []
    for node, (place, env) in enumerate(places):
        pathspec = [obj.flow.name, given["run_id"], given["step_name"], place["task_id"]]
        logs = [os.path.join(folder, f"node-{node}", stream) for stream in ("stdout", "stderr")]
        stored = task_environment.logs(pathspec, given["retry_count"] or "0", obj.flow_datastore, *logs)
        nodes.append({"argv": _command_of_task(context, given, python, place), "env": {**env, **stored}})
    return nodes


def _folder(obj: Any, request: Request, machine: Machine, given: dict[str, Any]) -> str:
    """The job's own folder."""
    datastore = obj.flow_datastore
    if request.folder:
        top = request.folder
    elif datastore.TYPE == "local":
        top = os.path.join(os.path.abspath(datastore.datastore_root), "slurm")
    else:
        top = os.path.join(machine.home(), ".metaflow-slurm")
    attempt = "-".join((given["step_name"], given["task_id"], given["retry_count"] or "0"))
    return os.path.join(top, obj.flow.name, given["run_id"], attempt)


def _local_root(obj: Any) -> str:
    """The folder that the tasks have to share with the run: that of local data or metadata; "" where neither is."""
    if obj.flow_datastore.TYPE == "local":
        return os.path.abspath(str(obj.flow_datastore.datastore_root))
    if metadata.kind(obj.metadata) == "local":
        return os.path.abspath(datastores.configured_root(datastores.storages()["local"]) or ".metaflow")
    return ""


def _variables(context: Any, given: dict[str, Any], folder: str) -> dict[str, str]:
    """The variables of all nodes' tasks."""
    obj = context.obj
    code = (given["code_metadata"], given["code_sha"], given["code_url"])
    script, user = os.path.basename(sys.argv[0]), step_command.user_name()
    env = task_environment.settings()
    env.update(task_environment.common(obj, "slurm", user, code, script, given["run_id"]))
    if root := _local_root(obj):
        env["METAFLOW_DATASTORE_SYSROOT_LOCAL"] = os.path.dirname(root)
    for decorator in obj.graph[given["step_name"]].decorators:
        if decorator.name == "environment":
            env.update({name: str(value) for name, value in decorator.attributes["vars"].items()})
    env[FOLDER] = folder
    return env


def _prepare(context: Any, given: dict[str, Any], machine: Machine, in_array: bool) -> Job:
    """Make the job's folder, and the job."""
    obj = context.obj
    limit = given["run_time_limit"]
    request = read(given, 0 if limit == step_command.LONGEST_S else limit)
    folder = _folder(obj, request, machine, given)
    if (root := _local_root(obj)) and not machine.has(root):
        raise SlurmException(
            f"{machine.where} does not have {root}, where the local data and metadata are: share it with the "
            "cluster under this path, or use a datastore such as S3 and a metadata service."
        )
    chosen = request.executable or (sys.executable if machine.has(sys.executable) else "python3")
    python = step_command.interpreter(obj.environment, given["step_name"], chosen)
    set_to, prepended = code_package.variables(given["code_metadata"], os.path.join(folder, "code"))
    spec = specification(
        {**_variables(context, given, folder), **set_to},
        prepended,
        _nodes(context, given, python, folder),
        task_environment.MAIN_ADDRESS if given["num_parallel"] else "",
        task_logs.around_the_line(by_run=False),
        python,
    )
    with open(node_task.__file__, "rb") as file:
        program = file.read()
    files = {"spec.json": spec.encode(), "node_task.py": program}
    files["code.package"] = code_package.load(obj.flow_datastore, given["code_sha"])
    unpack = code_package.unpack_commands(given["code_metadata"], "../code.package", ".")
    name = "/".join((obj.flow.name, given["run_id"], given["step_name"], given["task_id"], given["retry_count"] or "0"))
    tolerates = _tolerates_lost_nodes(obj, given)
    job = Job(name, folder, python, given["num_parallel"] or 1, request, unpack, tolerates)
    if in_array:
        files[BATCH] = job.script().encode()
    machine.make_folder(folder, files)
    return job


def _tolerates_lost_nodes(obj: Any, given: dict[str, Any]) -> bool:
    decorators = obj.graph[given["step_name"]].decorators
    gangs = [decorator for decorator in decorators if hasattr(decorator, "tolerates_lost_nodes")]
    return any(gang.tolerates_lost_nodes(given["num_parallel"] or 1) for gang in gangs)


def _shared(context: Any, given: dict[str, Any], slurm: Slurm, run: int, say: Any) -> SharedSlurm | None:
    """The way to Slurm of a task that has others beside it, those of its foreach; None for another one."""
    graph = context.obj.graph
    has_others = any(graph[step].type == "foreach" for step in graph[given["step_name"]].split_parents)
    if given["num_parallel"] or not has_others or str(configured("SLURM_ARRAYS")).lower() in ("0", "false"):
        return None
    where = (given["login"] or "", os.environ.get("SLURM_CONF", ""), os.environ.get("SLURM_CLUSTERS", ""))
    return SharedSlurm(slurm, address(context.obj.flow.name, given["run_id"], str(run), *where), run, say)


def _wait_before_retry(context: Any, given: dict[str, Any]) -> None:
    if int(given["retry_count"] or 0):
        for decorator in context.obj.graph[given["step_name"]].decorators:
            if decorator.name == "retry":
                minutes = float(decorator.attributes.get("minutes_between_retries", 2))
                context.obj.echo_always(f"Sleeping {minutes:g} minutes before the next retry")
                time.sleep(minutes * 60)


def _terminated(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def step(**given: Any) -> None:
    """The command."""
    context = click.get_current_context()

    def echo(text: str, stream: str) -> None:
        context.obj.echo_always(text, err=stream == "stderr", no_bold=True)

    run = os.getppid()
    _wait_before_retry(context, given)
    watch, shared, number, follower, is_interrupted = None, None, "", None, False
    signal.signal(signal.SIGTERM, _terminated)
    try:
        machine, slurm = choose(given["login"] or "")
        shared = _shared(context, given, slurm, run, echo)
        job = _prepare(context, given, machine, shared is not None)
        watch = Watch(slurm, machine.prefix, job.name, job.folder)
        number = shared.submit_task(job, machine, watch) if shared else submit(slurm, job.submission(), echo)
        watch.submitted(number)
        echo(f"[{number}] Slurm job {number} is submitted.", "stderr")
        tolerates = job.tolerates_lost_nodes
        follower = Follower(machine, shared or slurm, number, job.folder, job.num_nodes, echo, tolerates, run)
        follower.follow()
    except SlurmException as error:
        echo(f"{error.headline}: {error.message}", "stderr")
        is_final = isinstance(error, SlurmRefused)
        has_retries = int(given["retry_count"] or 0) < int(given["max_user_code_retries"] or 0)
        # Without retries Metaflow reports which step has failed; after this status it reports an internal error.
        sys.exit(step_command.NO_RETRY if is_final and has_retries else 1)
    except (KeyboardInterrupt, SystemExit):
        is_interrupted = True
        if number:
            follower = None
            echo(f"[{number}] The run ends, and Slurm job {number} with it: it is cancelled.", "stderr")
        raise
    finally:
        # Where this says nothing, the watcher cancels the job.
        if watch is not None and follower is not None and follower.is_over:
            watch.over()
        if shared is not None and not is_interrupted:
            shared.close()


def _options() -> list[Any]:
    return [*step_command.options(), *(click.Option([f"--{name}"]) for name in NAMES)]


_STEP = click.Command(
    "step",
    params=_options(),
    callback=step,
    help="Execute a single task, or a gang, as one Slurm job. This command is used internally by Metaflow.",
)

slurm = click.Group("slurm", commands={"step": _STEP}, help="Commands related to Slurm.")

cli = click.Group("cli", commands={"slurm": slurm})
