"""The metrics file, which variables ask for OpenTelemetry's export, and what is taken for a secret."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from otlp_collector import Collector
from prometheus_client.parser import text_string_to_metric_families

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.export import otlp
from metaflow_extensions.gang.core.export.task_export import exports, file_of_node, wants_otlp
from metaflow_extensions.gang.core.guard.export import otlp_feed
from metaflow_extensions.gang.core.guard.export.metrics_file import MetricsFile, as_text
from metaflow_extensions.gang.core.guard.export.points import of_sample, of_state
from metaflow_extensions.gang.core.guard.host.owned_files import Owned, remove_in_its_stead
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.secret_values import secrets_of, without_secrets
from metaflow_extensions.gang.core.rendezvous.task_info import TaskInfo
from metaflow_extensions.gang.core.settings.table import METRICS_FILE

SAMPLE = {
    "at": 1000.0,
    "cpu": 3.0,
    "memory": 5 << 30,
    "limit": 10 << 30,
    "totals": {"rx": 1, "tx": 2, "read": 3, "written": 4},
    "gpus": [{"util": 50, "memory": 1, "total": 2, "power": 312.5, "ecc": 0, "xid": None}],
    "ranks": [
        {"rank": 3, "title": "rank 3", "cpu_s": 1.5, "rss": 7, "line_at": 990.0},
        {"rank": None, "title": "sh", "cpu_s": 0.5, "rss": 6, "line_at": 0.0},
    ],
    "log": [["train/loss", "3", 8.0, 0.25], ["train loss", "3", 9.0, 0.5], ["größe", "3", 9.0, 1e-07]],
}

FAILURE = {"kind": "exit", "node": 2, "rank": 3, "text": "no metric has it"}

RESOURCE = {"metaflow.flow": 'a "b" \\ \n{c}', "gang.node": 1, "host.name": "h"}


def points(failure: dict[str, Any] | None = None) -> list[Any]:
    phases = {"since": 900.5, "times": {"started": 0.0, "joined": 1.5}}
    return [*of_sample(SAMPLE, 2), *of_state(phases, failure)]


def test_prometheus_reads_what_is_written() -> None:
    text = as_text(points(FAILURE), RESOURCE)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == text.count("# TYPE ") == text.count("# HELP ")
    found = {
        (sample.name, sample.labels.get("rank") or sample.labels.get("phase")): sample
        for family in families.values()
        for sample in family.samples
    }
    own = {"flow": 'a "b" \\ \n{c}', "node": "1", "host": "h"}
    assert all(own.items() <= sample.labels.items() for sample in found.values())
    expected = {
        ("system_cpu_utilization_ratio", None): 1.0,
        ("system_memory_utilization_ratio", None): 0.5,
        ("hw_gpu_utilization_ratio", None): 0.5,
        ("hw_power_watts", None): 312.5,
        ("hw_errors_total", None): 0.0,
        ("gang_rank_cpu_time_seconds_total", "3"): 1.5,
        ("gang_rank_memory_usage_bytes", "sh"): 6.0,
        ("gang_rank_output_age_seconds", "3"): 10.0,
        ("gang_step", "3"): 9.0,
        ("gang_user_gr__e", "3"): 1e-07,
        ("gang_phase_time_seconds", "joined"): 1.5,
        ("gang_task_start_time_seconds", None): 900.5,
    }
    assert {key: found[key].value for key in expected} == expected
    assert found["gang_user_train_loss", "3"].value == 0.25, "of two names that are one here, the first"
    (failed,) = families["gang_failed"].samples
    assert failed.value == 1.0 and failed.labels["failure_node"] == "2" and failed.labels["failure_kind"] == "exit"
    assert families["system_network_io_bytes"].type == "counter" and families["hw_power_watts"].type == "gauge"
    assert "no metric has it" not in text


def test_the_file_is_replaced_as_a_whole_and_a_folder_that_is_missing_is_said_once(tmp_path: Path) -> None:
    path, said = tmp_path / "folder" / "gang.prom", []
    file = MetricsFile(str(path), {}, said.append)
    file.write(points())
    file.write(points())
    assert said == [f"METAFLOW_GANG_METRICS_FILE: {path} cannot be written: No such file or directory."]
    path.parent.mkdir()
    file.write(points())
    assert os.listdir(path.parent) == ["gang.prom"] and stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    with open(path) as before:
        file.write([])
        assert before.read() and not path.read_text(), "who reads has the old one to its end"
    file.remove()
    file.remove()
    assert os.listdir(path.parent) == []


def test_the_file_of_a_killed_guard_is_removed_in_its_stead(tmp_path: Path) -> None:
    private, path = tmp_path / "gangs" / "private", tmp_path / "gang.prom"
    private.mkdir(parents=True)
    path.write_text("")
    owned = Owned()
    owned.keep(str(private), os.getpid())
    owned.add_file(str(path))
    remove_in_its_stead(str(private))
    assert not path.exists() and not private.exists()


@pytest.mark.parametrize(
    ("path", "node", "is_local", "expected"),
    [
        ("/m/gang.prom", 0, True, "/m/gang.prom"),
        ("/m/gang.prom", 2, True, "/m/gang-node2.prom"),
        ("/m/gang.prom", 2, False, "/m/gang.prom"),
        ("/m/{task}.prom", 2, True, "/m/7.prom"),
        ("/m/{flow}-{run}-{step}-{node}.prom", 2, True, "/m/Train-a_b-train-2.prom"),
    ],
)
def test_each_node_of_a_machine_has_a_file_of_its_own(path: str, node: int, is_local: bool, expected: str) -> None:
    assert file_of_node(path, TaskInfo("Train", "a/b", "train", "7", 0), node, is_local) == expected


def test_an_unknown_placeholder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_GANG_METRICS_FILE", "/m/{nod}.prom")
    with pytest.raises(BadAttribute, match=r"METRICS_FILE=/m/\{nod\}\.prom: there is no \{nod\}; there are \{node\}, "):
        METRICS_FILE.read()


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}, True),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "console, otlp"}, True),
    ],
)
def test_opentelemetry_s_own_variables_decide(environ: dict[str, str], expected: bool) -> None:
    assert wants_otlp(environ) == expected


def test_without_any_of_them_nothing_is_imported_or_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*ENDPOINT, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", METRICS_FILE.variable]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: pytest.fail("it looks for a package"))
    assert exports(TaskInfo("Train", "1", "train", "7", 0), "@gang", 0, True, 2) is None


@pytest.fixture
def feed_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs the program to its end with one state, and gives what was said."""
    monkeypatch.setattr(otlp_feed, "LAST_S", 120.0)  # for a machine that is busy with other tests

    def run(env: dict[str, str]) -> list[str]:
        loop, said = Loop(), []
        program = {
            "argv": [sys.executable, otlp.__file__, json.dumps(RESOURCE)],
            "env": {**os.environ, **env},
            "cwd": "/",
        }
        feed = otlp_feed.OtlpFeed(loop, program, lambda: {"points": points(FAILURE)}, said.append)
        feed.end(loop.stop)
        loop.run()
        loop.close()
        return said

    return run


def test_a_short_step_s_last_state_is_exported(feed_for: Callable[..., list[str]]) -> None:
    collector = Collector()
    try:
        said = feed_for({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.endpoint}/v1/metrics"})
    finally:
        collector.close()
    assert said == []
    (exported,) = collector.requests
    assert {(point.name, point.attributes.get("gang.rank")): point.value for point in exported}[
        "gang.user.train/loss", "3"
    ] == 0.25
    (failed,) = [point for point in exported if point.name == "gang.failed"]
    assert failed.attributes == {"gang.failure.kind": "exit", "gang.failure.node": 2, "gang.failure.rank": 3}


def test_what_goes_wrong_is_one_line_without_secrets(feed_for: Callable[..., list[str]]) -> None:
    collector = Collector(401)
    try:
        (line,) = feed_for({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint})
    finally:
        collector.close()
    assert "this node's metrics: Failed to export metrics batch code: 401" in line
    planted = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9/planted", "MY_TOKEN": "planted"}
    (line,) = feed_for(planted)
    assert "127.0.0.1" in line and "planted" not in line and "\n" not in line
    (line,) = feed_for({**planted, "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"})
    assert line.endswith("ValueError: the protocol smoke is none of http/protobuf and grpc")


def test_which_variables_are_secrets() -> None:
    names = (
        "MY_TOKEN",
        "KEY",
        "SSH_KEY",
        "APIKEY",
        "DB_SECRET",
        "PGPASSWORD",
        "SMTP_PASS",
        "KEYS_OF_X",
        "wandb_api_key",
    )
    assert secrets_of(dict.fromkeys(names, "abcdef")) == ["abcdef"]
    for name in names:
        assert without_secrets("an abcdef", {name: "abcdef"}) == "an ***"
    for name in ("PATH", "KEYBOARD", "COMPASS_DIR", "PWD", "BYPASS"):
        assert secrets_of({name: "abcdef"}) == [], name
    for name in ("RAY_AUTH_MODE", "HTTP_AUTH_METHOD", "auth_type"):
        assert secrets_of({name: "disabled"}) == [], name
        assert without_secrets("disabled", {name: "disabled"}, name) == "disabled"
        assert secrets_of({name: "pa55word"}) == ["pa55word"], "no plain word"
        assert without_secrets("pa55word", {}, name) == "***"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "AUTH", "AUTH_MODES", "TOKEN_AUTH_MODE", "KEY_AUTH_TYPE"):
        assert secrets_of({name: "disabled"}) == ["disabled"], name
        assert without_secrets("disabled", {}, name) == "***"
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=abcdefg, x=y"}
    assert without_secrets("got abcdefg", headers) == "got ***"
