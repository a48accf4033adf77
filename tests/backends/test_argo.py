"""What is special to Argo: the tasks' names, what is read in Argo itself, and the manifest's own placeholders."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.examples import EXAMPLES
from support.requirements import require_packages

from .argo.place import ArgoPlace
from .argo.placeholders import fill, unfilled
from .image import Image
from .kubernetes.pods import Pod
from .workplace import RUN_S, result
from .workplace import bare_image as bare_image

FLOW = """
import json, threading
from metaflow import FlowSpec, current, gang, retry, step

class Argues(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    DECORATORS
    @gang
    @step
    def work(self):
        self.met = current.gang.all_gather([current.retry_count, current.gang.node_index])
        print(f"node {current.gang.node_index} works in attempt {current.retry_count}", flush=True)
        BODY
        self.next(self.join)

    @step
    def join(self, inputs):
        self.met = [one.met for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.met))

if __name__ == "__main__":
    Argues()
"""

DEPLOY_S = 60.0
"""For two commands of Metaflow, and a run's first task to begin."""

GANG_FAILED = "Error (exit code 1): failure condition '{status.terminalState == [Failed]}' evaluated true"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    require_packages(*ArgoPlace.packages)
    with contextlib.ExitStack() as made:
        yield made


def flow(nodes: int, body: str = "pass", decorators: str = "") -> str:
    return FLOW.replace("NODES", str(nodes)).replace("DECORATORS", decorators).replace("BODY", body)


def started(pods: list[Pod]) -> bool:
    return any(pod.container and "Task is starting." in pod.container.output for pod in pods)


@pytest.mark.big
def test_an_attempt_that_lives_on_is_not_met_by_the_next_whose_tasks_are_the_same(
    stack: contextlib.ExitStack, tmp_path: Path, image: Image
) -> None:
    """As where Argo loses its own pod, which waits for the JobSet: that goes on, and Argo makes the next.

    Of the second attempt node 1 comes first, and looks for a meeting while there is only that of the first.
    """
    place = ArgoPlace(stack, tmp_path, image, 4)
    body = "threading.Event().wait(None if current.retry_count == 0 else 0)"
    run = place.start(flow(2, body, "@retry(times=1, minutes_between_retries=0)"))
    for node in range(2):
        place.node(node, "works in attempt 0", run)
    place.cluster.unschedulable = lambda pod: (
        pod.role == "control-0" and pod.attempt == 1 and not started(place.pods(1)[1:])
    )
    run.workflow.executor.evict()
    assert "work(0): Failed: pod deleted" in run.ok(RUN_S)
    assert result(run) == [[[1, 0], [1, 1]]] * 2, run.dump()
    assert len({pod.metadata["labels"]["task_id_entropy"] for node in range(2) for pod in place.pods(node)}) == 1
    for node in range(2):
        first, second = place.pods(node)
        assert first.active and not second.active
        said = place.task_logs(run, node, attempt=1)
        assert f"node {node} works in attempt 1" in said and "attempt 0" not in said, said


@pytest.mark.big
def test_a_gang_that_fails_for_good_fails_the_workflow_whose_logs_have_the_cause(
    stack: contextlib.ExitStack, tmp_path: Path, image: Image
) -> None:
    place = ArgoPlace(stack, tmp_path, image, 2)
    output = place.start(flow(2, 'assert current.gang.node_index == 0, "out of luck"')).fails(RUN_S)
    assert f"work: Failed: {GANG_FAILED}" in output
    (control,) = place.pods(0)
    said = "".join(re.findall(rf"^{control.name}: (.*\n)", output, re.MULTILINE))
    assert "[gang] The first failure was on node 1" in said and "out of luck" in said, output


@pytest.mark.big
def test_a_gang_of_one(stack: contextlib.ExitStack, tmp_path: Path, image: Image) -> None:
    place = ArgoPlace(stack, tmp_path, image, 1)
    run = place.start(flow(1))
    run.ok(RUN_S)
    assert result(run) == [[[0, 0]]], run.dump()


@pytest.mark.big
def test_a_script_shows_what_it_would_deploy_and_deploys_it_and_starts_a_run(
    stack: contextlib.ExitStack, tmp_path: Path, image: Image
) -> None:
    place = ArgoPlace(stack, tmp_path, image, 2)

    def deploy(*arguments: str) -> str:
        argv = [sys.executable, str(EXAMPLES / "recipes" / "deploy.py"), *arguments]
        return place.hosts[0].run(argv, env=place.env, cwd=tmp_path, timeout=DEPLOY_S).stdout

    dry = deploy("--dry")
    assert "train is a JobSet, started at most 3 times" in dry
    assert dry.count("python deployed.py") == 2, "node 0's command, and the other nodes'"
    assert not place.api.templates and not place.executions
    said = deploy()
    (execution,) = place.executions
    assert f"argo-{execution.workflow.name}/train" in said
    assert "the nodes have seen [(0.5, 0), (0.5, 1)]" in execution.ok(RUN_S)


@pytest.mark.parametrize(
    ("text", "known", "filled"),
    [
        ("{{a.b}}-{{ c }}{{retries}}", {"a.b": "1", "c": "2"}, "1-2{{retries}}"),
        ("{{=sprig.int(sprig.sub(sprig.int(inputs.parameters['a-b']),1))}}", {"inputs.parameters.a-b": "3"}, "2"),
        ("replicas: {{=asInt(inputs.parameters.count)}}", {"inputs.parameters.count": "2"}, "replicas: 2"),
        ("{{=toBase64(workflow.parameters['rate'])}}", {"workflow.parameters.rate": "0.5"}, "MC41"),
        ([{"a": "{{=asInt(x)}}"}, 5, None], {}, [{"a": "{{=asInt(x)}}"}, 5, None]),
    ],
)
def test_placeholders_are_filled_in_where_their_names_are_known(text: Any, known: dict[str, str], filled: Any) -> None:
    assert fill(text, known) == filled


def test_what_is_left_of_placeholders_is_found_and_other_braces_are_not() -> None:
    left = unfilled(["{{retries}} {{a}}", {"b": "{{inputs.parameters.x}}"}])
    assert left == ["{{retries}}", "{{inputs.parameters.x}}"]
