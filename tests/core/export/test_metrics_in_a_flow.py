"""The metrics of a gang that runs, as Prometheus and OpenTelemetry's collectors read them, by HTTP and by gRPC."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from otlp_collector import Collector, GrpcCollector
from prometheus_client.parser import text_string_to_metric_families
from support.flows import FlowRunner

LIMIT_S = 180.0

FLOW = """
import os, sys, time
from metaflow import FlowSpec, current, gang, step

RANK = '''
import os, time
from metaflow import gang_log
done = os.environ["DONE_FILE"]
for number in range(1200):
    gang_log(step=number, loss=0.5)
    if os.path.exists(done):
        break
    time.sleep(0.1)
'''

class Exported(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang(card=False)
    @step
    def work(self):
        current.gang.run([sys.executable, "-c", RANK])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Exported()
"""


def values(path: Path) -> dict[str, float]:
    """The metrics in a file by name; nothing where it is not there yet."""
    with contextlib.suppress(FileNotFoundError):
        families = text_string_to_metric_families(path.read_text())
        return {sample.name: sample.value for family in families for sample in family.samples}
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Collector, GrpcCollector], ids=["http", "grpc"])
def test_both_exports_while_a_step_runs_and_at_its_end(
    flow_run: FlowRunner, tmp_path: Path, kind: Callable[[], Collector | GrpcCollector]
) -> None:
    files = [tmp_path / "gang.prom", tmp_path / "gang-node1.prom"]
    done = tmp_path / "done"
    collector = kind()
    try:
        env = {
            "DONE_FILE": str(done),
            "METAFLOW_GANG_METRICS_FILE": str(files[0]),
            "MY_SECRET_TOKEN": "planted-secret",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": collector.protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=planted-header",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "no_proxy": "127.0.0.1",
        }
        run = flow_run(FLOW, env=env)
        deadline = time.monotonic() + LIMIT_S
        while not (
            all({"gang_user_loss", "gang_rank_cpu_time_seconds_total"} <= values(file).keys() for file in files)
            and all(any(point.name == "gang.user.loss" for point in collector.of_node(node)) for node in (0, 1))
        ):
            assert time.monotonic() < deadline and run.exit_code is None, run.dump()
            time.sleep(0.2)  # a file, and requests that come every half second
        text = "".join(file.read_text() for file in files)
        done.touch()
        run.ok(LIMIT_S)
    finally:
        collector.close()
    assert not any(file.exists() for file in files)
    assert "planted" not in text and b"planted" not in collector.raw
    assert all(headers["api-key"] == "planted-header" for headers in collector.headers)
    for node in (0, 1):
        last = {(point.name, point.attributes.get("gang.phase")): point for point in collector.of_node(node)}
        assert last["gang.user.loss", None].value == 0.5
        assert last["gang.phase.time", "done"].value > last["gang.phase.time", "ranks"].value
        assert last["gang.phase.time", "done"].resource["metaflow.step"] == "work"
