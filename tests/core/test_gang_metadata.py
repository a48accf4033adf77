"""What a run leaves behind about its gangs: one line with the phases' times, and Metaflow's metadata of each task."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import metaflow
import pytest
from support.flows import FlowRunner

from metaflow_extensions.gang.core.guard.failure_record import Failure
from metaflow_extensions.gang.core.guard.settings import DEFAULTS
from metaflow_extensions.gang.core.metadata import TaskMetadata, as_values

SECRET = "hunter2-hunter2"

FLOW = """
import os, signal, time
from metaflow import FlowSpec, current, gang, retry, step

class Phases(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @retry(times=4, minutes_between_retries=0)
    @gang(end_timeout=25)
    @step
    def work(self):
        index = current.gang.node_index
        current.gang.run(["sh", "-c", "echo a line"])
        current.gang.barrier()
        if (current.retry_count, index) == (0, 1):
            raise ValueError("no way with " + os.environ["MY_API_TOKEN"])
        if (current.retry_count, index) in ((1, 1), (2, 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if (current.retry_count, index) == (3, 1):
            current.gang.run(["sh", "-c", "exit 7"])
        if current.retry_count < 4:
            time.sleep(1000)
        time.sleep(1.5 * index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Phases()
"""


def test_a_gang_leaves_its_failures_phases_and_settings(flow_run: FlowRunner) -> None:
    begun = time.time()
    run = flow_run(FLOW, env={"MY_API_TOKEN": SECRET}).ok(180)
    client = run.client()
    names = [task.pathspec for _, task in sorted(run.node_tasks("work").items())]

    def of(attempt: int, node: int) -> dict[str, Any]:
        found = metaflow.Task(names[node], attempt=attempt).metadata_dict
        assert SECRET not in str(found)
        return {name: json.loads(text) for name, text in found.items() if name.startswith("gang-")}

    def failure(attempt: int) -> dict[str, Any]:
        both = [of(attempt, node)["gang-failure"] for node in (0, 1)]
        assert both[0] == both[1], "the same on every node"
        assert begun < both[0].pop("time") < time.time() and both[0].pop("host")
        return dict(both[0])

    nothing = {"rank": None, "exit_code": None, "signal": None, "signal_name": None, "exception": None}
    nothing |= {"message": None, "last_lines": []}
    raised = {"node": 1, "kind": "exception", "exception": "ValueError", "message": "ValueError: no way with ***"}
    text = "the step's body raised ValueError: no way with ***"
    found = failure(0)
    assert found["last_lines"][-1] == "ValueError: no way with ***"
    assert found == {**nothing, **raised, "text": text, "last_lines": found["last_lines"]}
    killed = {**nothing, "kind": "task-signal", "signal": 9, "signal_name": "SIGKILL"}
    for attempt, node in ((1, 1), (2, 0)):
        found = failure(attempt)
        assert found.pop("text").startswith("the node's task was killed by SIGKILL")
        assert found == {**killed, "node": node}
    found = failure(3)
    assert found.pop("text").endswith("exited with code 7")
    assert found == {**nothing, "node": 1, "kind": "exit", "exit_code": 7}

    for attempt, order in ((0, ["ranks", "failed", "done", "stored"]), (4, ["ranks", "done", "stored"])):
        for node in (0, 1):
            left = of(attempt, node)
            assert ("gang-failure" in left) == (attempt == 0)
            assert left["gang-settings"] == {**DEFAULTS, "end_timeout": 25.0}
            times = left["gang-phases"]["times"]
            assert begun < left["gang-phases"]["since"] < time.time()
            assert times["started"] == 0 < times["met"] <= times["joined"] <= times["formed"] <= times["ranks"]
            assert [times[name] for name in order] == sorted(times[name] for name in order) and "output" in times
            assert ("gang" in left["gang-phases"]) == (node == 0)
    gang = of(4, 0)["gang-phases"]["gang"]
    assert gang["done"]["nodes"] == 2 and gang["done"]["last_node"] == 1
    assert of(2, 0)["gang-phases"]["times"]["failed"], "left by another process in its place"
    assert SECRET not in str(client.metadata_dict if hasattr(client, "metadata_dict") else "")

    lines = re.findall(r"\[gang\] (joined .*)", run.output)
    assert len(lines) == 4, "node 0 was killed in one attempt of five: " + run.output
    failed = r"joined [\d.]+ s, (?:launcher .* s, )?ranks [\d.]+ s, body failed after [\d.]+ s, stored [\d.]+ s"
    well = r"joined ([\d.]+) s, (?:launcher .* s, )?ranks [\d.]+ s, body ([\d.]+) s, stored [\d.]+ s"
    failed, well = (text + r"; card: python flow\.py card view \d+/work/2" for text in (failed, well))
    assert all(re.fullmatch(failed, line) for line in lines[:3]), lines
    found = re.fullmatch(well, lines[3])
    assert found and float(found[1]) > 0.2, lines
    assert 1.5 <= float(found[2]) < 30, "the last node's body counts"
    assert lines[3] in run.node_log("work", 0, "stderr")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, (None, None, None)),
        (3, (3, None, None)),
        (-9, (None, 9, "SIGKILL")),
        (-200, (None, 200, "signal 200")),
    ],
)
def test_how_a_process_ended_as_data(code: int | None, expected: tuple[Any, ...]) -> None:
    data = Failure(1, "exit", "rank 3 ended", 1.0, rank=3, exit_code=code).as_data("")
    assert (data["exit_code"], data["signal"], data["signal_name"]) == expected
    assert (data["rank"], data["host"], data["exception"]) == (3, None, None)


def test_no_secret_of_the_environment_is_registered() -> None:
    environ = {"DB_PASSWORD": SECRET, "AWS_SECRET_ACCESS_KEY": "abc/def", "TOKENIZERS": "", "PATH": "/usr/bin"}
    data = {"gang-failure": {"text": f"{SECRET} in /usr/bin, abc/def", "node": 1, "more": {"inner": SECRET}}}
    text = as_values(data, environ)["gang-failure"]
    assert json.loads(text) == {"text": "*** in /usr/bin, ***", "node": 1, "more": {"inner": "***"}}


def test_a_provider_that_fails_is_told_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def register_metadata(self, *args: Any) -> None:
            raise OSError("no service")

    TaskMetadata(Broken(), "1", "work", "2", 0).register({"gang-failure": {}})
    assert "[gang] gang-failure could not be registered as metadata: OSError: no service" in capsys.readouterr().err
