"""Each private part of Metaflow that is used: it is there, and where it is not, the user reads a sentence."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, reload
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow
import pytest

from metaflow_extensions.gang.core.exceptions import MetaflowChanged
from metaflow_extensions.gang.core.metaflow_compat import (
    cards,
    configuration,
    datastores,
    environment,
    lookup,
    metadata,
    runs,
    steps,
    task_logs,
    tasks,
    version,
)

FOLDER = Path(lookup.__file__).parent


class Owner:
    """An object of Metaflow's, of which only what the test gives it is there."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


def split(nodes: int = 2) -> Owner:
    return Owner(num_parallel=nodes)


def _with_save_logs(owner: Any) -> Owner:
    """An object that stores logs, and says where as far as ``owner`` does."""
    known = {"get_log_location": owner.get_log_location} if hasattr(owner, "get_log_location") else {}
    return Owner(save_logs=nothing, **known)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


IMPORTED: dict[tuple[str, str], Callable[[], object]] = {
    ("metaflow.metaflow_config_funcs", "from_conf"): lambda: configuration.configured("GANG_LOG_MEGABYTES"),
    ("metaflow._vendor.click", "get_current_context"): configuration.command_words,
    ("metaflow.plugins", "DATASTORES"): datastores.storages,
    ("metaflow.plugins", "METADATA_PROVIDERS"): lambda: metadata.open_provider("local", "Train"),
    ("metaflow.metaflow_environment", "MetaflowEnvironment"): lambda: metadata.open_provider("local", "Train"),
    ("metaflow.metadata_provider", "MetaDatum"): lambda: metadata.register(Owner(), "1", "train", "2", 0, {}),
    ("metaflow.datastore", "FlowDataStore"): lambda: datastores.open_flow_datastore("Train", "local", "/tmp/none"),
    ("metaflow.mflog", "TASK_LOG_SOURCE"): lambda: task_logs.save_own_logs(Owner(save_logs=nothing), {}),
    ("metaflow.mflog", "RUNTIME_LOG_SOURCE"): lambda: task_logs.save_logs_of_run(Owner(save_logs=nothing), {}),
    ("metaflow.mflog.mflog", "ISOFORMAT"): task_logs.around_the_line,
    ("metaflow.mflog.mflog", "decorate"): task_logs.around_the_line,
    ("metaflow.plugins.parallel_decorator", "ParallelDecorator"): lambda: steps._parallel_decorator()().step_init(),
    ("metaflow.decorators", "_base_step_decorator"): lambda: steps.step_decorator(Owner),
    ("metaflow.unbounded_foreach", "UBF_CONTROL"): lambda: steps.is_control("ubf_control"),
    ("metaflow.unbounded_foreach", "UBF_TASK"): lambda: tasks.command_of_node("train", {}),
    ("metaflow.cli_args", "cli_args"): lambda: tasks.command_of_node("train", {}),
    ("metaflow.runtime", "Worker"): lambda: runs.replace_line_reader(lambda reader: reader),
    ("metaflow.plugins.cards.card_decorator", "CardDecorator"): lambda: cards.is_card(None),
    ("metaflow.plugins.cards.card_creator", "CardProcessManager"): lambda: cards.process_of("none"),
    ("metaflow.plugins.cards.card_modules.card", "MetaflowCard"): cards.card_type_base,
    ("metaflow.plugins.cards.card_datastore", "CardDatastore"): lambda: cards.card_store("T", "local", "", "T/1/a/2"),
}
"""What is imported, and a call of the function that imports it."""

_CARD_STORE = IMPORTED["metaflow.plugins.cards.card_datastore", "CardDatastore"]

MEMBERS: dict[tuple[str, str], Callable[[], object]] = {
    ("metaflow.cli_args.CLIArgs", "step_kwargs"): IMPORTED["metaflow.cli_args", "cli_args"],
    ("metaflow.cli_args.CLIArgs", "step_command"): IMPORTED["metaflow.cli_args", "cli_args"],
    ("metaflow.runtime.Worker", "read_logline"): IMPORTED["metaflow.runtime", "Worker"],
    ("metaflow.metaflow_current.Current", "_update_env"): lambda: tasks.appear_on_current({}),
    ("metaflow.datastore.datastore_storage.DataStoreStorage", "get_datastore_root_from_config"): lambda: (
        datastores.configured_root(import_module("metaflow.datastore.datastore_storage").DataStoreStorage)
    ),
    ("metaflow.plugins.cards.card_decorator.CardDecorator", "_set_card_counts_per_step"): lambda: cards.count_cards(
        "train", []
    ),
    ("metaflow.plugins.cards.card_creator.CardProcessManager", "_get_card_process"): lambda: cards.process_of("none"),
    ("metaflow.plugins.cards.card_decorator.CardDecorator", "external_init"): lambda: cards.add_card(
        {"type": "blank", "id": "one"}, "huggingface_card"
    ),
    ("metaflow.metadata_provider.MetadataProvider", "register_metadata"): lambda: metadata.register(
        import_module("metaflow.metadata_provider").MetadataProvider, "1", "train", "2", 0, {}
    ),
    ("metaflow.metadata_provider.MetadataProvider", "TYPE"): lambda: metadata.kind(
        import_module("metaflow.metadata_provider").MetadataProvider
    ),
    ("metaflow.datastore.FlowDataStore", "get_task_datastore"): lambda: datastores.datastore_of_task(
        import_module("metaflow.datastore").FlowDataStore, "1", "train", "2", 0
    ),
    ("metaflow.datastore.TaskDataStore", "parent_datastore"): lambda: datastores.datastore_of_running_flow(
        Owner(_datastore=import_module("metaflow.datastore").TaskDataStore)
    ),
    ("metaflow.datastore.TaskDataStore", "save_logs"): lambda: task_logs.save_own_logs(
        import_module("metaflow.datastore").TaskDataStore, {}
    ),
    ("metaflow.datastore.TaskDataStore", "get_log_location"): lambda: task_logs.save_another_log(
        _with_save_logs(import_module("metaflow.datastore").TaskDataStore), "gang", "debug", None
    ),
    ("metaflow.plugins.aws.batch.batch_decorator.BatchDecorator", "_wait_for_mapper_tasks"): lambda: (
        steps.wait_for_no_other_node(import_module("metaflow.plugins.aws.batch.batch_decorator").BatchDecorator())
    ),
    ("metaflow.plugins.parallel_decorator.ParallelDecorator", "task_decorate"): lambda: steps.leave_the_body(Owner()),
    ("metaflow.plugins.cards.component_serializer.CardComponentManager", "_card_proc"): lambda: cards.make(
        Owner(), "refresh"
    ),
    ("metaflow.plugins.cards.card_datastore.CardDatastore", "save_card"): _CARD_STORE,
    ("metaflow.plugins.cards.card_datastore.CardDatastore", "save_data"): _CARD_STORE,
    ("metaflow.plugins.cards.card_datastore.CardDatastore", "get_storage_root"): _CARD_STORE,
}
"""Attributes of Metaflow's classes, as far as the classes have them, and a call of the function that uses them."""

INSTANCES: dict[str, tuple[list[str], Callable[[], object]]] = {
    # name: the files of Metaflow that write it, and a call of the function that misses it
    "_storage_impl": (["datastore/flow_datastore.py"], lambda: datastores.storage_of_flow(Owner())),
    "_datastore": (["flowspec.py"], lambda: datastores.datastore_of_running_flow(Owner())),
    "_foreach_stack": (["task.py"], lambda: tasks.foreach_depth(Owner())),
    "num_parallel": (
        ["flowspec.py", "parallel.py"],
        lambda: tasks.num_nodes(Owner(_parallel_ubf_iter=Owner()), ""),
    ),
    "out_funcs": (["graph.py"], lambda: steps.steps_without_split([Owner(name="start")], "train")),
    "parallel_foreach": (["graph.py"], lambda: steps.steps_without_split([Owner(out_funcs=["train"])], "train")),
    "task": (["runtime.py"], lambda: runs.started_task(Owner())),
    "ubf_iter": (["runtime.py"], lambda: runs.started_task(Owner(task=Owner()))),
    "env": (["runtime.py"], lambda: runs.started_task(Owner(task=Owner(ubf_iter=split())))),
    "task_id": (["runtime.py"], lambda: runs.started_task(Owner(env={}, task=Owner(ubf_iter=split())))),
    "_logs": (["runtime.py"], lambda: runs.output_of(Owner(), 1)),
    "_max": (["plugins/cards/card_modules/components.py"], lambda: cards.set_maximum(Owner(), 3)),
    "_card_uuid": (["plugins/cards/card_decorator.py"], lambda: cards.identity(Owner())),
    "_card_proc": (["plugins/cards/component_serializer.py"], lambda: cards.make(Owner(), "refresh")),
}
"""Attributes that Metaflow gives its objects as they are made."""

UNCHECKED = {"_parallel_ubf_iter", "_control_mapper_tasks", "IS_PARALLEL", "saved_args"}
"""Attributes that objects of any Metaflow may lack."""


def sentence(call: Callable[[], object], part: str) -> None:
    with pytest.raises(MetaflowChanged) as raised:
        call()
    text = str(raised.value)
    assert re.search(rf"^metaflow-gang uses [\w. @'-]*\b{re.escape(part)}\b", text), text
    assert re.search(r" of Metaflow to [^,]*, and (ob-)?metaflow 2\.\d+\.\d+\S* has no such part\. Install ", text), (
        text
    )
    assert raised.value.__cause__ is None and (raised.value.__suppress_context__ or not raised.value.__context__)


def owner_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("module, name", IMPORTED)
def test_a_name_that_cannot_be_imported(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(import_module(module), name)  # it is there, on this Metaflow too
    sentence(IMPORTED[module, name], name)


@pytest.mark.parametrize("module, name", IMPORTED)
def test_a_module_that_is_gone(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module(module)
    monkeypatch.setattr(lookup, "import_module", lambda wanted: _missing(module, wanted))
    sentence(IMPORTED[module, name], module)


def _missing(gone: str, wanted: str) -> Any:
    if wanted == gone:
        raise ModuleNotFoundError(f"No module named {gone!r}", name=gone)
    return import_module(wanted)


@pytest.mark.parametrize("owner, name", MEMBERS)
def test_an_attribute_of_a_class(owner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = owner_of(owner)
    holder = next((kind for kind in found.__mro__ if name in vars(kind)), None)
    if holder is not None:
        monkeypatch.delattr(holder, name)
    else:
        assert name in INSTANCES or name == "_card_proc", f"this Metaflow has no {owner}.{name}"
    for kind in found.__mro__:  # what a base of it would give instead
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    sentence(MEMBERS[owner, name], name)


@pytest.mark.parametrize("name", INSTANCES)
def test_an_attribute_of_an_object(name: str) -> None:
    files, call = INSTANCES[name]
    folder = Path(metaflow.__file__).parent
    there = [folder / file for file in files if (folder / file).exists()]
    assert any(re.search(rf"\b{name}\b", file.read_text()) for file in there), f"this Metaflow has no {name}"
    sentence(call, name)


@pytest.mark.parametrize(
    "call, name",
    [(environment.main_address, environment.MAIN_IP), (lambda: environment.node_index(False), environment.NODE_INDEX)],
)
def test_a_variable_that_no_backend_sets(
    call: Callable[[], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (name, "MF_WORKER_REPLICA_INDEX", "AWS_BATCH_JOB_NODE_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    sentence(call, name)


def test_every_private_part_is_in_these_tables() -> None:
    imported, named = set(), set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                if node.func.id == "imported" and len(words) >= 2:
                    imported.add((words[0], words[1]))
                elif node.func.id in ("member", "require") and words:
                    named.add(words[0])
    assert imported == set(IMPORTED)
    assert named == {name for _, name in MEMBERS} | set(INSTANCES)


FLOW = """
from metaflow import FlowSpec, gang, metaflow_config_funcs, step

del metaflow_config_funcs.from_conf


class Train(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Train()
"""


def test_a_flow_reads_the_sentence_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    command = [sys.executable, "flow.py", "--no-pylint", "--datastore", "local", "--metadata", "local", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "Metaflow has changed" in output, output
    assert "uses metaflow.metaflow_config_funcs.from_conf of Metaflow to read its settings" in output
    assert "Traceback" not in output, output


def test_metaflow_loads_without_our_card_type_where_it_has_no_class_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card_types = import_module("metaflow_extensions.gang.plugins.cards.mfextinit_gang")
    assert [found.type for found in card_types.CARDS] == ["gang"]
    with monkeypatch.context() as patch:
        patch.delattr("metaflow.plugins.cards.card_modules.card.MetaflowCard")
        patch.delitem(sys.modules, "metaflow_extensions.gang.core.card.card_type")
        assert reload(card_types).CARDS == []
    assert reload(card_types).CARDS


def test_the_newest_version_is_the_one_of_the_tests() -> None:
    constraints = Path(__file__).parents[1] / "constraints.txt"
    assert f"metaflow=={version.NEWEST_TESTED}\n" in constraints.read_text()


def test_another_missing_package_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(wanted: str) -> SimpleNamespace:
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")

    monkeypatch.setattr(lookup, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="boto3"):
        datastores.storages()
