"""A workplace with an Argo: the flow is deployed and executed there, all of its steps in pods."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import Any

from ..kubernetes.place import KubernetesPlace
from ..kubernetes.pods import Pod
from . import schema
from .api import ArgoApi
from .executor import WORKFLOW_LABEL, Stopped
from .workflow import Workflow

_COMMAND_S = 120.0


class Execution:
    """A workflow that runs, for a test to wait for, as for a run on the user's machine."""

    def __init__(self, workflow: Workflow, place: ArgoPlace) -> None:
        self.workflow, self._place = workflow, place
        self._broken = ""
        self._thread = threading.Thread(target=self._run, name="argo")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.workflow.run()
        except Stopped:
            self._broken = "the test has ended before"
        except Exception:  # told to who waits for the end
            self._broken = traceback.format_exc()

    @property
    def output(self) -> str:
        """What ``argo logs`` and ``argo get`` show: the lines of all pods of the workflow, and how its nodes ended."""
        lines = []
        for pod in self._place.pods_of(self.workflow.name):
            text = pod.container.output if pod.container else ""
            lines += [f"{pod.name}: {line}" for line in text.splitlines()]
        return "\n".join([*lines, *self.workflow.log]) + "\n"

    def join(self) -> None:
        """Wait until nothing of it runs, however it ends."""
        self._thread.join()

    @property
    def ended(self) -> bool:
        """Whether nothing of it is to come."""
        return not self._thread.is_alive()

    def dump(self) -> str:
        """For an assertion's message."""
        return f"workflow {self.workflow.name} {self.workflow.status} {self._broken}\n{self.output[-12000:]}"

    def wait(self, timeout: float) -> int:
        """0 where it has succeeded; AssertionError where it still runs after ``timeout`` seconds."""
        self._thread.join(timeout)
        assert self.ended, f"still running after {timeout:g} s: {self.dump()}"
        assert not self._broken, self.dump()
        return 0 if self.workflow.status == "Succeeded" else 1

    def ok(self, timeout: float) -> str:
        """Wait for its end, insist that it was a good one, and return the output."""
        assert self.wait(timeout) == 0, self.dump()
        return self.output

    def fails(self, timeout: float) -> str:
        """Wait for its end, insist that it failed, and return the output."""
        assert self.wait(timeout) > 0, self.dump()
        return self.output


class ArgoPlace(KubernetesPlace):
    """A cluster with Argo in it. Parameters are those of a place with Kubernetes alone.

    Attributes
    ----------
    executions : list of Execution
        Of the workflows that were started here, the oldest first.
    api : ArgoApi
    """

    packages = (*KubernetesPlace.packages, "hera")

    def __init__(self, stack: contextlib.ExitStack, folder: Path, *rest: Any, **options: Any) -> None:
        super().__init__(stack, folder, *rest, **options)
        self.executions: list[Execution] = []
        self.api = stack.enter_context(contextlib.closing(ArgoApi(self.hosts[0], self.cluster, self._started)))
        self.api.write_config(Path(self.env["KUBECONFIG"]))
        self._stop = threading.Event()
        self._stack = stack
        self._flow = folder / "user" / "flow.py"

    def start(self, flow: str, **files: str) -> Execution:
        """``argo-workflows create`` of the flow, and the workflow that this describes."""
        self._started(self.deploy(flow.replace("BACKEND", self.decorator), **files), {})
        return self.executions[-1]

    def _started(self, manifest: dict[str, Any], parameters: dict[str, str]) -> str:
        """Start a workflow of a WorkflowTemplate; its name."""
        execution = Execution(Workflow(manifest, self.cluster, self.api, self._stop, parameters), self)
        self._stack.callback(execution.join)
        self._stack.callback(self._stop.set)
        self.executions.append(execution)
        return execution.workflow.name

    def deploy(self, flow: str, **files: str) -> dict[str, Any]:
        """The WorkflowTemplate that Metaflow makes of the flow, which is one that Argo takes."""
        self._flow.parent.mkdir()
        for stem, text in {"flow": flow, **files}.items():
            self._flow.with_stem(stem).write_text(textwrap.dedent(text))
        manifest: dict[str, Any] = json.loads(self._command("argo-workflows", "create", "--only-json"))
        problems = schema.check(manifest)
        assert not problems, "\n".join(problems)
        return manifest

    def task_logs(self, execution: Any, index: int, attempt: int = 0) -> str:
        """The log of a node's own task as the user reads it, after the run."""
        return self._command("logs", "--attempt", str(attempt), self.pathspec(index))

    def pathspec(self, index: int) -> str:
        """Run, step and task of a node: as Metaflow has them, the task is the same in all attempts."""
        metadata = self.pods(index)[0].metadata
        annotations, entropy = metadata["annotations"], metadata["labels"]["task_id_entropy"]
        task = f"worker-{entropy}-{index - 1}" if index else f"control-{entropy}-0"
        return f"{annotations['metaflow/run_id']}/{annotations['metaflow/step_name']}/{task}"

    def pods_of(self, workflow: str) -> list[Pod]:
        """What has the label by which ``argo logs`` finds a workflow's pods; those of JobSets have it, too."""
        history = list(self.cluster.history)
        return [pod for pod in history if pod.metadata["labels"].get(WORKFLOW_LABEL) == workflow]

    def _command(self, *arguments: str) -> str:
        """What a command of the flow prints."""
        argv = [sys.executable, str(self._flow), *arguments]
        return self.hosts[0].run(argv, env=self.env, cwd=self._flow.parent, timeout=_COMMAND_S).stdout
