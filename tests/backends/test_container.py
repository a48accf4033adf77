"""A container has nothing of the tests' own Python, and nothing that another one left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.hosts import Hosts
from support.requirements import require_tool

from .container import KILLED, Container
from .image import Image

LIMIT_S = 60.0

SEES = """
import importlib.util, json, os, socket, sys
found = {name: importlib.util.find_spec(name) is not None for name in ("metaflow", "metaflow_extensions", "numpy")}
files = {name: os.listdir(name) for name in (os.getcwd(), os.environ["HOME"], "/dev/shm")}
print(json.dumps([found, files, os.getpid(), socket.gethostname(), socket.gethostbyname("other.test")]))
for name in (os.getcwd(), os.environ["HOME"], "/dev/shm", "/tmp"):
    open(os.path.join(name, "left"), "w").close()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"), "numpy")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(1) as made:
        yield made


def test_each_container_begins_empty_and_has_only_the_image(hosts: Hosts, image: Image, tmp_path: Path) -> None:
    for number in range(2):
        name = f"pod-{number}.domain.test"
        container = Container(
            hosts[0], tmp_path / name, image, ["bash", "-c", 'sleep 1; python -c "$S"; exit 3'], {"S": SEES}, name
        )
        container.know({"other.test": "10.9.8.7"})
        assert container.wait(LIMIT_S) == 3, container.output
        found, files, pid, hostname, other = json.loads(container.output)
        assert found == {"metaflow": False, "metaflow_extensions": False, "numpy": True}
        assert not any(files.values()), files
        assert (pid < 100, hostname, other) == (True, name, "10.9.8.7")


def test_a_killed_container_takes_all_its_processes_along(hosts: Hosts, image: Image, tmp_path: Path) -> None:
    container = Container(hosts[0], tmp_path / "one", image, ["bash", "-c", "setsid sleep 600 & sleep 601"], {}, "one")
    while len(container.processes()) < 2:
        assert container.running(), container.output
    container.kill()
    assert container.wait(LIMIT_S) == KILLED
    assert not hosts[0].processes()


def test_a_signal_to_the_first_process_reaches_no_other(hosts: Hosts, image: Image, tmp_path: Path) -> None:
    """As in a pod: without a handler the first process of a namespace is deaf, and a shell passes nothing on."""
    require_tool("killall5", "sysvinit-utils")
    trap = "trap 'echo heard' TERM; echo ready; while :; do sleep 0.1; done"
    container = Container(
        hosts[0], tmp_path / "one", image, ["bash", "-c", f"(bash -c {json.dumps(trap)}); exit 4"], {}, "one"
    )
    while "ready" not in container.output:
        assert container.running(), container.output
    assert container.run(["kill", "-TERM", "1"]) == 0
    assert container.run(["/sbin/killall5", "-15"]) == 0  # what Metaflow runs in a pod to end it: all but the first
    while "heard" not in container.output:
        assert container.running(), container.output
    container.kill()
    assert container.wait(LIMIT_S) == KILLED
    assert container.output.count("heard") == 1
