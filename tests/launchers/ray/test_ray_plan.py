"""What @metaflow_ray would start, where and with what: decided without starting anything."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from metaflow import FlowSpec, step
from metaflow.graph import FlowGraph
from metaflow.plugins.resources_decorator import ResourcesDecorator

from metaflow_extensions.gang.core.exceptions import BadAttribute, GangInterrupt
from metaflow_extensions.gang.core.storage.results import results_prefix
from metaflow_extensions.gang.launchers.ray import start
from metaflow_extensions.gang.launchers.ray.decorator import DEBUG_VARIABLE, RayDecorator, RayInterrupt
from metaflow_extensions.gang.launchers.ray.exceptions import RayNotInstalledException, not_joined
from metaflow_extensions.gang.launchers.ray.forming import check_same_ray
from metaflow_extensions.gang.launchers.ray.plan import (
    READY,
    REPORT,
    Cluster,
    auth_environment,
    node_address,
    passed_over,
    ray_start,
    start_environment,
    system_config,
    temporary_folder,
)
from metaflow_extensions.gang.launchers.ray.resources import MIB, Offer, memory_available, offer, shared_memory_free
from metaflow_extensions.gang.launchers.ray.storage import SUFFIX, storage_path

OFFER = Offer(cpus=3, gpus=2, memory=5000, object_store=100 * MIB)


def cluster(**changes: Any) -> Cluster:
    known: dict[str, Any] = {
        "address": "10.0.0.1",
        "port": 20001,
        "client_port": 20002,
        "dashboard_port": None,
        "heartbeat_timeout": 10.0,
        "unreachable_timeout": 60.0,
    }
    return Cluster(**{**known, **changes})


def started(index: int = 0, offered: Offer = OFFER, address: str = "10.0.0.1", **changes: Any) -> dict[str, str | None]:
    """The options of node ``index``'s ``ray start`` by name; None for one without a value."""
    process = ray_start(cluster(**changes), index, address, offered, "/tmp/gang-ray-1-0", {}, "/bin/python3")
    awaited = "10.0.0.1 20001" if index else ""
    assert process.argv[:4] == ("/bin/python3", "-u", start.__file__, awaited)
    found: dict[str, str | None] = {}
    # What is ray's own, such as the logging level, comes before the name of its command.
    words = [word for word in process.argv[4:] if word != "start"]
    assert process.argv.index("start") == (6 if changes.get("logging_level") else 4)
    while words:
        name = words.pop(0)
        assert name.startswith("--") and name not in found, process.argv
        found[name[2:]] = words.pop(0) if words and not words[0].startswith("--") else None
    return found


# ---------------------------------------------------------------- ray start


def test_the_head_s_command() -> None:
    assert started() == {
        "block": None,
        "disable-usage-stats": None,
        "node-ip-address": "10.0.0.1",
        "node-name": "node0",
        "temp-dir": "/tmp/gang-ray-1-0",
        "min-worker-port": "0",
        "max-worker-port": "0",
        "dashboard-agent-listen-port": "0",
        "num-cpus": "3",
        "num-gpus": "2",
        "resources": '{"node:0": 1}',
        "memory": "5000",
        "object-store-memory": str(100 * MIB),
        "log-color": "false",
        "log-style": "record",
        "head": None,
        "port": "20001",
        "ray-client-server-port": "20002",
        "system-config": json.dumps(system_config(cluster())),
        "include-dashboard": "false",
    }


def test_a_ray_without_grpc_has_no_port_for_clients() -> None:
    bare = started(0, client_port=None)
    assert started(0).keys() - bare.keys() == {"ray-client-server-port"}


def test_a_worker_s_command_is_the_head_s_without_what_is_the_head_s() -> None:
    head = started(0, dashboard_port=8265)
    worker = started(7, address="10.0.0.8", dashboard_port=8265)
    changed = {name: value for name, value in worker.items() if head.get(name) != value}
    assert changed == {
        "node-ip-address": "10.0.0.8",
        "node-name": "node7",
        "resources": '{"node:7": 1}',
        "address": "10.0.0.1:20001",
    }
    assert head.keys() - worker.keys() == {
        *("head", "port", "ray-client-server-port", "system-config"),
        *("include-dashboard", "dashboard-host", "dashboard-port"),
    }


@pytest.mark.parametrize(
    ("attribute", "option", "value"),
    [
        ({"port": 6379}, "port", "6379"),
        ({"logging_level": "debug"}, "logging-level", "debug"),
        ({"log_style": "pretty"}, "log-style", "pretty"),
        ({"dashboard_port": 8265}, "include-dashboard", "true"),
        ({"dashboard_port": 8265}, "dashboard-port", "8265"),
        ({"dashboard_port": 8265}, "dashboard-host", "10.0.0.1"),
    ],
)
def test_an_attribute_changes_its_option(attribute: dict[str, Any], option: str, value: str) -> None:
    assert started(**attribute)[option] == value
    assert started().get(option) != value


def test_the_addresses_of_ipv6_are_in_brackets_where_a_port_follows() -> None:
    head = cluster(address="fd00::1")
    assert head.bootstrap == "[fd00::1]:20001"
    argv = ray_start(head, 1, "fd00::2", OFFER, "/tmp/x", {}).argv
    assert argv[argv.index("--address") + 1] == "[fd00::1]:20001"
    assert argv[argv.index("--node-ip-address") + 1] == "fd00::2"


def test_a_local_gang_stays_on_the_loopback_interface() -> None:
    assert node_address("127.0.0.1") == node_address("localhost") == "127.0.0.2"
    assert node_address("10.0.0.7") == "10.0.0.7"
    with socket.create_server((node_address("127.0.0.1"), 0)) as server:
        assert server.getsockname()[0].startswith("127.")


def test_an_object_store_that_has_no_room_in_shared_memory_is_on_the_disk() -> None:
    assert "plasma-directory" not in started()
    on_disk = Offer(1, 0, 1, 100 * MIB, in_shared_memory=False)
    assert started(offered=on_disk)["plasma-directory"] == "/tmp/gang-ray-1-0"


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.5, 10.0, 300.0])
def test_a_lost_node_is_given_up_within_the_heartbeat_timeout(seconds: float) -> None:
    config = system_config(cluster(heartbeat_timeout=seconds))
    least = 1.0  # Ray asks each node every 0.1 s at most
    answers = config["health_check_failure_threshold"] * (
        config["health_check_period_ms"] + config["health_check_timeout_ms"]
    )
    assert answers <= max(seconds, least) * 1000
    assert config["health_check_initial_delay_ms"] <= max(seconds, least) * 1000
    assert all(isinstance(value, int) and value > 0 for value in config.values())


@pytest.mark.parametrize(("seconds", "told"), [(0.2, 1), (7.9, 7), (60.0, 60)])
def test_an_unreachable_head_is_given_up_after_the_timeout(seconds: float, told: int) -> None:
    assert system_config(cluster(unreachable_timeout=seconds))["gcs_rpc_server_reconnect_timeout_s"] == told


def test_the_environment_of_ray_is_the_step_s_without_another_cluster_s() -> None:
    given = {"PATH": "/bin", "RAY_ADDRESS": "10.9.9.9:6379", "RAY_TMPDIR": "/x", "RAY_BACKEND_LOG_LEVEL": "debug"}
    env = start_environment(given)
    assert "RAY_ADDRESS" not in env and "RAY_TMPDIR" not in env
    assert (env["PATH"], env["RAY_BACKEND_LOG_LEVEL"]) == ("/bin", "debug")
    assert (env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"], env["RAY_USAGE_STATS_ENABLED"]) == ("0", "0")
    own = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "9", "RAY_USAGE_STATS_ENABLED": "1"}
    assert start_environment(own).items() >= own.items(), "what the user has chosen stays"
    assert given["RAY_ADDRESS"], "what was given is not changed"
    assert ray_start(cluster(), 0, "10.0.0.1", OFFER, "/tmp/x", given).env == env


# ---------------------------------------------------------------- what ray start says

BLOCKED = """\
2026-01-02 03:04:05,678 ERR scripts.py:1100 -- Some Ray subprocesses exited unexpectedly:
2026-01-02 03:04:05,678 ERR scripts.py:1107 -- raylet [exit code=-9]
2026-01-02 03:04:05,678 ERR scripts.py:1112 -- Remaining processes will be killed.
"""


@pytest.mark.parametrize(
    ("said", "title", "code"),
    [
        (BLOCKED, "raylet", -9),
        (BLOCKED.replace("raylet", "gcs_server").replace("-9", "1"), "gcs_server", 1),
        ("Some Ray subprocesses exited unexpectedly:\n  log_monitor [exit code=0]\n", "log_monitor", 0),
    ],
)
def test_the_process_of_ray_that_ended_first_is_read_from_what_ray_start_says(said: str, title: str, code: int) -> None:
    found = re.search(REPORT, said, re.DOTALL)
    assert found is not None and (found["title"], int(found["exit_code"])) == (title, code)
    assert re.search(REPORT, "raylet [exit code=-9]", re.DOTALL) is None


def test_ready_is_what_ray_start_says_at_its_end_alone() -> None:
    assert re.search(READY, "... SUCC scripts.py:889 -- Ray runtime started.\n")
    assert not re.search(READY, "Local node IP: 10.0.0.1\nRay runtime will start\n")


# ---------------------------------------------------------------- what a node offers

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory_mb", "shared_mb", "available", "shm_free", "sharing", "memory", "store"),
    [
        # Asked for: three tenths of it are the store's.
        (10_000, None, 1, 64 * GIB, 1, 7000 * MIB, 3000 * MIB),
        (10_000, 4000, 1, 64 * GIB, 1, 6000 * MIB, 4000 * MIB),
        # Not asked for: what is free, shared among the nodes of this machine.
        (None, None, 40 * GIB, 64 * GIB, 1, 28 * GIB, 12 * GIB),
        (None, None, 40 * GIB, 64 * GIB, 4, 7 * GIB, 3 * GIB),
        # The decorators say it per node: nothing is divided.
        (10_000, 4000, 1, 64 * GIB, 4, 6000 * MIB, 4000 * MIB),
        # Ray's own limits.
        (None, None, 2000 * GIB, 4000 * GIB, 1, 1800 * GIB, 200 * GIB),
        (100, None, 1, 64 * GIB, 1, 24 * MIB, 76 * MIB),
        (50, 10, 1, 64 * GIB, 1, 0, 76 * MIB),
    ],
)
def test_memory_is_divided_between_tasks_and_objects(
    memory_mb: int | None, shared_mb: int | None, available: int, shm_free: int, sharing: int, memory: int, store: int
) -> None:
    found = offer(8, 2, memory_mb, shared_mb, available, shm_free, sharing)
    assert (found.cpus, found.gpus, found.in_shared_memory, found.notice) == (8, 2, True, "")
    assert abs(found.object_store - store) <= 1 and abs(found.memory - memory) <= 1


def test_a_small_shm_is_told_where_the_store_moves_to_the_disk() -> None:
    found = offer(1, 0, 8000, None, 1, 64 * MIB, 1)  # a container's default
    assert not found.in_shared_memory and found.object_store == 2400 * MIB - 352 * MIB == 2 * GIB
    assert found.notice.startswith("/dev/shm has 64 MiB free, and Ray's object store should have 2400 MiB")
    assert "on the disk, which is slower" in found.notice and "@kubernetes(shared_memory=...)" in found.notice
    small = offer(1, 0, 1000, None, 1, 64 * MIB, 1)
    assert not small.in_shared_memory and small.object_store == 300 * MIB, "no more than is wanted"


def test_a_small_shm_is_told_where_more_was_asked_for() -> None:
    found = offer(1, 0, 8000, 1000, 1, 500 * MIB, 1)
    assert found.in_shared_memory and found.object_store == int(500 * MIB * 0.95)
    assert found.memory == 8000 * MIB - found.object_store
    assert "500 MiB free" in found.notice and "should have 1000 MiB: it gets 475 MiB there" in found.notice
    # Of what was not asked for it takes what is there, and /dev/shm of the size asked for is as it should be.
    assert offer(1, 0, 8000, None, 1, 500 * MIB, 1).notice == ""
    exact = offer(1, 0, 8000, 1000, 1, 1000 * MIB, 1)
    assert exact.in_shared_memory and exact.object_store == 950 * MIB and exact.notice == ""


def test_nodes_of_one_machine_share_its_shm() -> None:
    found = offer(1, 0, None, None, 40 * GIB, 200 * MIB, 4)
    assert not found.in_shared_memory and "200 MiB free, for 4 nodes on this machine" in found.notice
    shared = offer(1, 0, None, None, 40 * GIB, 1000 * MIB, 4)
    assert shared.in_shared_memory and 4 * shared.object_store <= 1000 * MIB


def test_no_shm_at_all() -> None:
    found = offer(1, 0, 1000, 500, 1, 0, 1)
    assert not found.in_shared_memory and found.object_store == 500 * MIB and "has 0 MiB free" in found.notice


def test_what_this_machine_has_is_read_from_it() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_available() <= total
    status = os.statvfs("/dev/shm")
    assert 0 < shared_memory_free() <= status.f_blocks * status.f_frsize


# ---------------------------------------------------------------- folders and tokens

LONGEST_SESSION = "session_2026-12-31_23-59-59_123456_4194304"
LONGEST_SOCKET = "dash_TaskEventsHead"  # the dashboard's; the object store's is shorter


def test_the_longest_name_of_a_folder_has_room_for_ray_s_sockets() -> None:
    name = "ray-1"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="g") as base:
        taken = []
        for length in range(len(base) + 2, 100):
            path = os.path.join(base, "x" * (length - len(base) - 1))
            folder = temporary_folder({}, path, name)
            if folder == os.path.join("/tmp", name):
                break
            taken.append(folder)
        longest = max(taken, key=len)
        for folder, fits in ((longest, True), (longest + "x", False)):
            sockets = os.path.join(folder, LONGEST_SESSION, "sockets")
            os.makedirs(sockets)
            with socket.socket(socket.AF_UNIX) as server:
                if fits:
                    server.bind(os.path.join(sockets, LONGEST_SOCKET))
                else:
                    with pytest.raises(OSError, match="too long"):
                        server.bind(os.path.join(sockets, LONGEST_SOCKET))


def test_ray_s_own_variable_says_where_its_folder_is() -> None:
    assert temporary_folder({"RAY_TMPDIR": "/scratch"}, "/var/tmp", "gang-ray-1-0") == "/scratch/gang-ray-1-0"
    assert temporary_folder({"RAY_TMPDIR": ""}, "/var/tmp", "gang-ray-1-0") == "/var/tmp/gang-ray-1-0"
    wide = {"RAY_TMPDIR": "/scratch/" + "ä" * 8}  # bytes count
    assert temporary_folder(wide, "/var/tmp", "gang-ray-1-0") == "/var/tmp/gang-ray-1-0"
    long = {"RAY_TMPDIR": "/scratch/" + "x" * 60}
    assert temporary_folder(long, "/var/tmp", "gang-ray-1-0") == "/var/tmp/gang-ray-1-0"
    assert temporary_folder(long, "/var/" + "x" * 60, "gang-ray-1-0") == "/tmp/gang-ray-1-0"


def test_a_folder_of_the_users_that_is_passed_over_is_told() -> None:
    told = passed_over({"RAY_TMPDIR": "/scratch/too-long"}, "/tmp/gang-ray-1-0/r")
    assert "RAY_TMPDIR=/scratch/too-long is too long" in told and told.endswith("files are in /tmp/gang-ray-1-0.")
    for unset_or_used in ({}, {"RAY_TMPDIR": ""}, {"RAY_TMPDIR": "/tmp"}, {"RAY_TMPDIR": "/tmp/"}):
        assert passed_over(unset_or_used, "/tmp/gang-ray-1-0/r") == ""
    assert passed_over({"RAY_TMPDIR": "/tm"}, "/tmp/gang-ray-1-0/r")


@pytest.mark.parametrize(
    ("chosen", "added"),
    [
        ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/private/token"}),
        ({"RAY_AUTH_MODE": "disabled"}, {}),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}, {}),
        ({"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_MODE": "token"}),
        ({"RAY_AUTH_TOKEN_PATH": "/home/token"}, {"RAY_AUTH_MODE": "token"}),
    ],
)
def test_the_gang_s_token_is_asked_for_unless_the_user_has_chosen(
    chosen: dict[str, str], added: dict[str, str]
) -> None:
    assert auth_environment({"PATH": "/bin", **chosen}, "/private/token") == added


# ---------------------------------------------------------------- storage

TASK = ("Ray Flow", "17", "train")


def store(kind: str, root: str) -> Any:
    return SimpleNamespace(TYPE=kind, datastore_root=root)


@pytest.mark.parametrize(
    ("kind", "root", "path"),
    [
        ("local", "/data/.metaflow", "/data/.metaflow/mf.ray_decorator/Ray Flow/17/train/0"),
        ("s3", "s3://bucket/metaflow", "s3://bucket/metaflow/mf.ray_decorator/Ray Flow/17/train/0"),
        ("s3", "s3://bucket/metaflow/", "s3://bucket/metaflow/mf.ray_decorator/Ray Flow/17/train/0"),
        ("gs", "gs://bucket/metaflow", "gs://bucket/metaflow/mf.ray_decorator/Ray Flow/17/train/0"),
        ("azure", "container/metaflow", "abfs://container/metaflow/mf.ray_decorator/Ray Flow/17/train/0"),
    ],
)
def test_storage_is_below_the_datastore_s_root(kind: str, root: str, path: str) -> None:
    assert storage_path(store(kind, root), results_prefix(SUFFIX, *TASK, None, 0)) == path


def test_storage_of_a_relative_root_and_of_a_gang_of_a_foreach(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = storage_path(store("local", ".metaflow"), results_prefix(SUFFIX, *TASK, "2", 3))
    assert found == f"{tmp_path}/.metaflow/mf.ray_decorator/Ray Flow/17/train/2/3"
    escaping = storage_path(store("s3", "s3://b/m"), results_prefix(SUFFIX, "Flow", "../..", "train", None, 0))
    assert "/../" not in escaping


# ---------------------------------------------------------------- what is refused


class Flow(FlowSpec):  # type: ignore[misc]
    @step
    def start(self) -> None:
        self.next(self.work, num_parallel=2)

    @step
    def work(self) -> None:
        self.next(self.join)

    @step
    def join(self, inputs: Any) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


def decorated(attributes: dict[str, Any], **resources: Any) -> RayDecorator:
    """The decorator of a step, as it is before the run begins."""
    deco = RayDecorator(attributes=attributes, statically_defined=True)
    beside = ResourcesDecorator(attributes=resources, statically_defined=True)
    deco.step_init(None, FlowGraph(Flow), "work", [deco, beside], None, store("local", "/x"), None)
    return deco


PORT = "is a port from 1 to 65535, or left out, so that a free one is agreed upon; not"


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"main_port": 0}, f"@metaflow_ray(main_port=...) {PORT} 0."),
        ({"main_port": "redis"}, f"@metaflow_ray(main_port=...) {PORT} 'redis'."),
        ({"dashboard_port": 65536}, f"@metaflow_ray(dashboard_port=...) {PORT} 65536."),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout is a number of seconds greater than 0."),
        ({"heartbeat_timeout": True}, "heartbeat_timeout is a number of seconds greater than 0."),
        ({"unreachable_timeout": "long"}, "unreachable_timeout is a number of seconds greater than 0."),
        ({"unreachable_timeout": None}, "unreachable_timeout is a number of seconds greater than 0."),
        (
            {"all_nodes_started_timeout": -1},
            "all_nodes_started_timeout is a number of seconds greater than 0 and at most 604800.",
        ),
        ({"log_style": "loud"}, "@metaflow_ray(log_style='loud'): it is one of 'auto', 'record', 'pretty'."),
        ({"log_style": 7}, "@metaflow_ray(log_style=7): it is one of 'auto', 'record', 'pretty'."),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_before_anything_runs(attributes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadAttribute) as caught:
        decorated(attributes)
    assert told in str(caught.value)


def test_an_attribute_that_is_misspelt_is_refused() -> None:
    with pytest.raises(Exception, match="hartbeat_timeout"):
        decorated({"hartbeat_timeout": 3})


def test_text_from_a_command_line_counts_and_older_attributes_are_taken() -> None:
    deco = decorated(
        {"main_port": "6379", "dashboard_port": "8266", "heartbeat_timeout": "7", "worker_polling_freq": 0.1}
    )
    assert [deco.attributes[name] for name in ("main_port", "dashboard_port", "heartbeat_timeout")] == [6379, 8266, 7.0]
    assert decorated({}).attributes["main_port"] is None


def test_what_the_step_asks_for_is_read_from_its_decorators() -> None:
    deco = decorated({}, cpu=3, gpu=2, memory=9000, shared_memory="512")
    assert (deco.cpus, deco.gpus, deco.memory, deco.shared_memory) == (3, 2, 9000, 512)


@pytest.mark.parametrize(
    ("attributes", "variable", "shown"),
    [
        ({}, None, False),
        ({"logging_level": "info"}, None, True),
        ({"log_style": "pretty"}, None, True),
        ({}, "Enabled", True),
        ({}, "0", False),
    ],
)
def test_ray_start_is_shown_where_it_is_asked_for(
    attributes: dict[str, Any], variable: str | None, shown: bool, monkeypatch: Any
) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(DEBUG_VARIABLE, variable)
    assert decorated(attributes).shows_ray_start is shown


def test_lost_workers_are_tolerated_where_it_is_asked_for() -> None:
    assert decorated({"tolerate_lost_workers": True}).tolerates_lost_nodes(2)
    assert not decorated({}).tolerates_lost_nodes(2)


def test_an_interrupt_passes_through_ray() -> None:
    """What Ray's core runs between its own steps lets a KeyboardInterrupt pass, and swallows the rest."""
    assert issubclass(RayInterrupt, KeyboardInterrupt) and issubclass(RayInterrupt, GangInterrupt)
    assert RayDecorator.interrupt is RayInterrupt


# ---------------------------------------------------------------- who takes part, and who does not


def node(ray: str = "2.40.0", python: str = "3.11.2") -> dict[str, Any]:
    return {"ray": ray, "python": python, "address": "10.0.0.1"}


@pytest.mark.parametrize("other", [node(ray="2.39.0"), node(python="3.11.3"), node(ray="of unknown version")])
def test_a_node_with_another_ray_is_named_with_both_versions(other: dict[str, Any]) -> None:
    check_same_ray([node(), node(), node()])
    with pytest.raises(RayNotInstalledException) as caught:
        check_same_ray([node(), node(), other])
    told = str(caught.value)
    assert told.startswith("Node 0 has Ray 2.40.0 on Python 3.11.2 and node 2 has Ray"), told
    assert other["ray"] in told and other["python"] in told and told.endswith("Use one image for all.")


def test_a_node_that_did_not_join_is_named_with_what_is_known() -> None:
    told = str(not_joined(3, "10.0.0.1:6379", "ray start exited with code 1", "first\nlast"))
    assert told == (
        "Node 3 did not join the Ray cluster at 10.0.0.1:6379: ray start exited with code 1\n"
        "The last lines of its raylet's log:\n"
        "  | first\n"
        "  | last"
    )
    assert "raylet" not in str(not_joined(3, "10.0.0.1:6379", "ray start exited with code 1", ""))


def test_a_worker_waits_for_the_head_s_port() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        host, port = server.getsockname()
        waiting = threading.Thread(target=start.wait_for, args=(host, port))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "the port is refused: the head's Ray is not up yet"
        server.listen()
        waiting.join(30)
        assert not waiting.is_alive()


def test_a_head_that_cannot_be_reached_is_told_with_its_port(monkeypatch: Any) -> None:
    monkeypatch.setattr(start, "CLOSED_S", 0.1)
    with pytest.raises(SystemExit) as caught:
        start.wait_for("255.255.255.255", 20001)  # no address of a machine: every attempt fails at once
    told = str(caught.value)
    assert told.startswith("255.255.255.255 port 20001, where Ray's head is, cannot be reached from here ("), told
    assert "firewall" in told
