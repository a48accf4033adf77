"""What TensorFlow, and JAX, are told of the nodes, and what is refused: decided without starting anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.requirements import require_packages

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.gang.gang import Gang
from metaflow_extensions.gang.core.gang.node import Node
from metaflow_extensions.gang.core.rendezvous.task_info import TaskInfo
from metaflow_extensions.gang.launchers.jax.decorator import JaxDecorator, JaxMissing
from metaflow_extensions.gang.launchers.tensorflow.decorator import TensorflowDecorator, is_initialized
from metaflow_extensions.gang.launchers.tensorflow.exceptions import TensorflowMissing, TooLate
from metaflow_extensions.gang.launchers.tensorflow.launcher import TensorflowExecutor, read_tf_config
from metaflow_extensions.gang.launchers.tensorflow.roles import Roles, acts_as_chief, tf_config

ADDRESSES = [f"10.0.0.{node}:2000{node}" for node in range(5)]


def configs(roles: Roles, num_nodes: int) -> list[dict[str, Any]]:
    return [tf_config(roles, ADDRESSES[:num_nodes], node) for node in range(num_nodes)]


# ---------------------------------------------------------------- roles


def test_all_are_workers_by_default() -> None:
    found = configs(Roles(), 3)
    assert [config["task"] for config in found] == [{"type": "worker", "index": index} for index in range(3)]
    assert all(config["cluster"] == {"worker": ADDRESSES[:3]} for config in found)


def test_every_role_at_once() -> None:
    found = configs(Roles(chief=True, ps=1, evaluator=True), 5)
    tasks = [(config["task"]["type"], config["task"]["index"]) for config in found]
    assert tasks == [("chief", 0), ("worker", 0), ("worker", 1), ("ps", 0), ("evaluator", 0)]
    # The evaluator's own address is in nobody's cluster, not even in its own.
    cluster = {"chief": ADDRESSES[:1], "worker": ADDRESSES[1:3], "ps": ADDRESSES[3:4]}
    assert all(config["cluster"] == cluster for config in found)


@pytest.mark.parametrize(
    ("roles", "num_nodes", "chief"),
    [
        (Roles(), 3, 0),
        (Roles(chief=True), 3, 0),
        (Roles(evaluator=True), 2, 0),
        (Roles(chief=True, ps=2), 4, 0),
        (Roles(ps=1), 3, 0),
    ],
)
def test_one_node_acts_as_chief(roles: Roles, num_nodes: int, chief: int) -> None:
    assert [node for node, config in enumerate(configs(roles, num_nodes)) if acts_as_chief(config)] == [chief]


def test_spin_has_no_evaluator_and_refuses_parameter_servers() -> None:
    assert Roles(chief=True, evaluator=True).of_one_node() == Roles(chief=True)
    with pytest.raises(BadAttribute, match="spin runs a step on one node"):
        Roles(ps=1).of_one_node()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"task": {"index": 0}}, True),
        ({"task": {"type": "worker", "index": "0"}, "cluster": {"worker": ["a:1"]}}, True),
        ({"task": {"type": "worker", "index": 0}, "cluster": {"chief": ["a:1"], "worker": ["b:1"]}}, False),
        ({"task": {"type": "evaluator", "index": 0}}, False),
        ({"task": {"type": "ps", "index": 0}}, False),
    ],
)
def test_who_is_chief_of_a_tf_config_of_the_user(config: dict[str, Any], expected: bool) -> None:
    assert acts_as_chief(config) is expected


@pytest.mark.parametrize(
    ("roles", "fewest"),
    [
        (Roles(), 1),
        (Roles(chief=True), 1),
        (Roles(ps=1), 2),
        (Roles(chief=True, ps=1), 3),
        (Roles(evaluator=True), 2),
        (Roles(chief=True, ps=2, evaluator=True), 5),
    ],
)
def test_somebody_has_to_be_left_to_train(roles: Roles, fewest: int) -> None:
    roles.check(fewest)
    with pytest.raises(BadAttribute, match="no node is left to train"):
        roles.check(fewest - 1)


def test_the_refusal_says_what_was_asked_for() -> None:
    with pytest.raises(BadAttribute, match=r"@tensorflow on 2 nodes with chief=True, ps=1: no node"):
        Roles(chief=True, ps=1).check(2)


# ---------------------------------------------------------------- the decorator


def decorator(**attributes: Any) -> TensorflowDecorator:
    made = TensorflowDecorator()
    made.attributes = {**TensorflowDecorator.defaults, **attributes}
    return made


@pytest.mark.parametrize("ps", [-1, 1.5, "two", None, True])
def test_a_number_of_parameter_servers(ps: Any) -> None:
    with pytest.raises(BadAttribute, match="it is a whole number of nodes, 0 or more"):
        decorator(ps=ps).check_attributes()


@pytest.mark.parametrize("ps", [0, 2, "2"])
def test_numbers_that_are_meant(ps: Any) -> None:
    decorator(ps=ps).check_attributes()


def test_a_missing_framework_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorflow", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    for made, error, package in (
        (TensorflowDecorator(), TensorflowMissing, "tensorflow"),
        (JaxDecorator(), JaxMissing, "jax"),
    ):
        made.task = TaskInfo("Flow", "7", "train", "3", 0)
        with pytest.raises(error, match=rf"Step \*train\* needs .* pip install {package}\."):
            made.preflight()


def in_python(code: str, **env: str) -> str:
    """What the code prints, in a process of its own, after the extension was imported."""
    start = "import metaflow, sys\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_comes_too_late() -> None:
    require_packages("tensorflow")
    said = in_python(
        """
        from metaflow_extensions.gang.launchers.tensorflow.decorator import TensorflowDecorator
        from metaflow_extensions.gang.launchers.tensorflow.exceptions import TooLate
        TensorflowDecorator().preflight()
        import tensorflow as tf
        TensorflowDecorator().preflight()
        print("importing it is well")
        tf.constant(1.0)
        try:
            TensorflowDecorator().preflight()
        except TooLate as error:
            print(error)
        """
    )
    first, second = said.splitlines()
    assert first == "importing it is well"
    assert second.startswith("TensorFlow was used in this process before the step's body")
    assert not is_initialized(), "here nobody has used it"
    assert issubclass(TooLate, BadAttribute)


# ---------------------------------------------------------------- current.tensorflow


def executor(folder: Path, config: dict[str, Any], node: int = 0) -> TensorflowExecutor:
    nodes = tuple(Node(index, f"10.0.0.{index}", "here", 1, 0) for index in range(3))
    gang = Gang(node, nodes, str(folder), None)  # type: ignore[arg-type]
    return TensorflowExecutor(gang, Roles(), None, "", config, False)


def test_only_the_chief_saves_where_it_is_told_to(tmp_path: Path) -> None:
    chief, other = (executor(tmp_path / "private", tf_config(Roles(), ADDRESSES[:2], node)) for node in (0, 1))
    (tmp_path / "private").mkdir()
    wanted = tmp_path / "made" / "here" / "digits.keras"
    assert (chief.is_chief, other.is_chief) == (True, False)
    assert chief.save_path(wanted) == str(wanted) and wanted.parent.is_dir()
    first, second = other.save_path(str(wanted)), other.save_path(str(wanted))
    for thrown_away in (first, second):
        path = Path(thrown_away)
        assert path.name == "digits.keras" and path.parent.is_dir()
        assert path.is_relative_to(tmp_path / "private"), "it goes with the gang"
    assert first != second, "what was saved before is not in the way"
    assert Path(other.save_path("folder/")).name == "folder"


def test_a_path_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert executor(tmp_path, tf_config(Roles(), ADDRESSES[:1], 0)).save_path("digits.keras") == "digits.keras"


def test_what_is_said_of_this_node(tmp_path: Path) -> None:
    server = executor(tmp_path, tf_config(Roles(chief=True, ps=1), ADDRESSES[:3], 2), node=2)
    assert (server.task_type, server.worker_index, server.is_chief) == ("ps", 0, False)
    assert server.config["cluster"]["ps"] == [ADDRESSES[2]]
    second = executor(tmp_path, tf_config(Roles(chief=True), ADDRESSES[:3], 2), node=2)
    assert (second.task_type, second.worker_index, second.is_chief) == ("worker", 1, False)


def test_a_tf_config_of_the_user_is_read() -> None:
    config = tf_config(Roles(), ADDRESSES[:2], 1)
    assert read_tf_config(json.dumps(config)) == config
    for text, said in [("{", "is no JSON: "), ("[1]", "is no JSON object: [1]"), ('"x"', "is no JSON object")]:
        with pytest.raises(BadAttribute) as caught:
            read_tf_config(text)
        assert f"TF_CONFIG, which you have set, {said}" in str(caught.value)


# ---------------------------------------------------------------- JAX

CLUSTERS = '''
class ClusterEnv:
    """As JAX has it: subclasses put themselves into the list, and the first that is there is taken."""

    _cluster_types = []

    def __init_subclass__(cls, **named):
        ClusterEnv._cluster_types.append(cls)


class Slurm(ClusterEnv):
    name = "slurm"

    @classmethod
    def is_env_present(cls):
        return True
'''

SHOW = """
found = [kind for kind in sys.modules["jax._src.clusters"].ClusterEnv._cluster_types if kind.is_env_present()]
first = found[0]
print([kind.name for kind in found])
print(first.get_coordinator_address(timeout_secs=3, override_coordinator_port=None))
print(first.get_process_count(), first.get_process_id())
"""

PLACE = """
from metaflow_extensions.gang.launchers.jax.cluster import Place, tell_jax
place = Place("10.0.0.1:20001", 2, 3)
"""


@pytest.fixture
def fake_jax(tmp_path: Path) -> str:
    """A folder with a package that has JAX's list of clusters, and nothing else."""
    source = tmp_path / "jax" / "_src"
    source.mkdir(parents=True)
    (tmp_path / "jax" / "__init__.py").write_text("import jax._src.clusters\n")
    (source / "__init__.py").write_text("")
    (source / "clusters.py").write_text(CLUSTERS)
    return str(tmp_path)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("tell_jax(place); import jax", id="before JAX is imported"),
        pytest.param("import jax; tell_jax(place)", id="after JAX was imported"),
    ],
)
def test_the_gang_is_jax_s_first_cluster(fake_jax: str, order: str) -> None:
    assert in_python(f"sys.path.insert(0, {fake_jax!r})\n{PLACE}\n{order}\n{SHOW}").splitlines() == [
        "['metaflow_gang', 'slurm']",
        "10.0.0.1:20001",
        "3 2",
    ]


def test_telling_jax_does_not_import_it_and_leaves_nothing_in_the_way(fake_jax: str) -> None:
    said = in_python(
        f"""
sys.path.insert(0, {fake_jax!r})
{PLACE}
before = list(sys.meta_path)
tell_jax(place)
print("jax" in sys.modules, len(sys.meta_path) - len(before))
import json.tool, jax
print(sys.meta_path == before, sys.modules["jax._src.clusters"].__spec__.origin)
"""
    )
    assert said.splitlines() == ["False 1", f"True {fake_jax}/jax/_src/clusters.py"]


def test_jax_s_own_list_takes_the_gang() -> None:
    """The real one: the names that are used are no part of what JAX promises."""
    require_packages("jax")
    said = in_python(f"{PLACE}\ntell_jax(place)\nimport jax\n{SHOW}", JAX_PLATFORMS="cpu").splitlines()
    assert said[0].startswith("['metaflow_gang'") and said[1:] == ["10.0.0.1:20001", "3 2"]
