"""One flow on each of Metaflow's datastores: its nodes meet there and leave their results there, and so does Ray."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.flows import flow_environment
from support.hosts import Host, Hosts
from support.remote import Datastore, RemoteGang
from support.requirements import require_packages

from metaflow_extensions.gang.launchers.ray.storage import azure_url

from .stores import STORES

Served = tuple[Hosts, Datastore]

LIMIT_S = 120.0
"""For one program, on a machine that is busy with other tests."""

FLOW = """
import os
from metaflow import FlowSpec, current, step, torchrun

class Meets(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @torchrun
    @step
    def work(self):
        where = current.torch.run(
            entrypoint="rank.py", entrypoint_args=[str(current.retry_count)], push_results_dir_to_cloud=True,
            local_output_dir=f"out-{current.gang.node_index}", cloud_output_dir="out",
        )
        print("results are in", where)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Meets()
"""

NAME = " é ☃, 50%, a+b&c=d "

LARGE = 9_000_000
"""Bytes; so that a file is pushed by itself, and in pieces where the datastore takes pieces."""

RANK = f"""
import os, pathlib, sys

rank, attempt = os.environ["RANK"], sys.argv[1]
folder = pathlib.Path("out-" + rank)
folder.mkdir()
(folder / {NAME!r}).write_text(f"of rank {{rank}} in attempt {{attempt}}")
if rank == "0":
    (folder / "large").write_bytes(b"0" * {LARGE})
"""

OPEN = """
import json, sys
import metaflow
from metaflow.datastore.flow_datastore import FlowDataStore
from metaflow_extensions.gang.core.rendezvous.datastore_meeting import DatastoreMeeting, MeetingClosed
from metaflow_extensions.gang.core.storage.objects import ObjectNotFound, Objects, storage_of

kind, root = sys.argv[1:]
storage = storage_of(kind, root)
flow = FlowDataStore("Meets", storage_impl=type(storage), ds_root=root)

def meeting(attempt):
    return DatastoreMeeting(flow, "Meets", "7", "work", "3", attempt)
"""

PUBLISHED = """
print(meeting(0).poll(100).decode())
"""

READ = """
from metaflow.plugins.deepspeed_libs.datastore import DeepspeedDatastore

def everything(prefix):
    objects = Objects(storage, prefix)
    found = {key: objects.get(key) for key in objects.keys()}
    return {key: text.decode() if len(text) < 1000 else [len(text), len(set(text))] for key, text in found.items()}

def too_late(attempt):
    try:
        meeting(attempt).poll(0)
    except MeetingClosed as error:
        return str(error)

def by_deepspeed_s_names():
    store = DeepspeedDatastore(flow, "Meets/7/work/3")
    for content in ("first", "second"):
        store.put("state/kept", content)
        store.put("state/replaced", content.encode(), overwrite=True)
    (place,) = store.put_files([("state/file", "rank.py")])
    try:
        store.get("state/none")
    except ObjectNotFound as error:
        missing = str(error)
    texts = [blob.text for blob in store.get_many(["state/kept", "state/replaced", "state/file"])]
    return texts, sorted(one.url for one in store.list_paths(["state"])), place, missing

found = [everything(f"{place}/Meets/7/work/3") for place in ("mf.gang", "mf.torchrun")]
print(json.dumps([*found, too_late(1), by_deepspeed_s_names()]))
"""

RAY = """
import os
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext, _upload_to_fs_path
from metaflow_extensions.gang.launchers.ray.storage import SUFFIX, storage_path

place = f"{SUFFIX}/Meets/7/work/0"
path = storage_path(flow, place)
storage = StorageContext(path, "search")  # as RunConfig(storage_path=..., name=...) of Ray Train has it made
os.makedirs("made/deep")
with open("made/deep/model", "w") as file:
    file.write("weights")
_upload_to_fs_path("made", storage.storage_filesystem, f"{storage.experiment_fs_path}/checkpoint")
with open(os.path.join(Checkpoint(f"{path}/search/checkpoint").to_directory("read"), "deep", "model")) as file:
    read = file.read()
objects = Objects(storage_of(kind, root), place)
found = {key: objects.get(key).decode() for key in objects.keys()}
print(json.dumps([path, storage.storage_filesystem.type_name, read, found]))
"""


# Azurite comes by npm, which `make test` does without.
@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.big if kind == "azure" else ()) for kind in STORES],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three hosts for a gang, a fourth with the datastore's service, and the datastore."""
    folder = tmp_path_factory.mktemp("store")
    with Hosts(4) as hosts, STORES[request.param](hosts[3], folder) as datastore:
        yield hosts, datastore


def ask(host: Host, datastore: Datastore, program: str, folder: Path) -> Any:
    """What a program on a host, with the datastore's environment, prints as JSON."""
    argv = [sys.executable, "-c", OPEN + program, datastore.kind, datastore.root]
    done = host.run(argv, env=flow_environment(datastore.env), cwd=folder, timeout=LIMIT_S)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_nodes_meet_and_leave_their_results(served: Served, tmp_path: Path) -> None:
    hosts, datastore = served
    (tmp_path / "rank.py").write_text(RANK)
    gang = RemoteGang(hosts, tmp_path, FLOW, 2, datastore=datastore)
    # In attempt 0 node 0 is lost when it has said where it is, so that nobody takes that back.
    gang.start(0, on=2, MF_PARALLEL_MAIN_IP=hosts[2].address)
    lost = ask(hosts[0], datastore, PUBLISHED, tmp_path)
    assert lost["address"] == hosts[2].address and lost["secret"]
    gang.kill_host(2)

    said = [task.ok(LIMIT_S) for task in gang.start_all(attempt=1)]
    gang.wait_until_gone()
    uri = datastore.root
    for node, text in enumerate(said):
        assert f"[gang] Pushed out-{node} to {uri}/mf.torchrun/Meets/7/work/3/1/out/{node}\n" in text
        assert f"results are in {uri}/mf.torchrun/Meets/7/work/3/1/out\n" in text

    meetings, results, too_late, (texts, urls, place, missing) = ask(hosts[0], datastore, READ, tmp_path)
    tombstone = f"mf.gang closed 0 {hashlib.sha256(b'closed').hexdigest()}\n"
    assert set(meetings) == {"0", "1"} and lost["secret"] in meetings["0"] and meetings["1"] == tombstone
    assert "accepts no more nodes" in too_late and f"{uri}/mf.gang/Meets/7/work/3/1" in too_late
    expected = {f"1/out/{node}/{NAME}": f"of rank {node} in attempt 1" for node in range(2)}
    assert results == {**expected, "1/out/0/large": [LARGE, 1]}

    state = "mf.deepspeed/Meets/7/work/state"
    assert texts == ["first", "second", RANK]
    assert urls == [f"{uri}/{state}/{name}" for name in ("file", "kept", "replaced")]
    assert place == f"{state}/file" and f"{uri}/{state}/none" in missing


URLS = {
    "s3": ("s3", "s3://gang-tests/flows"),
    "azure": ("abfs", "abfs://gang-tests@gangaccount.dfs.core.windows.net/flows"),
    "gs": ("gcs", "gs://gang-tests/flows"),
}


@pytest.mark.slow
def test_ray_reads_there_what_it_wrote(served: Served, tmp_path: Path) -> None:
    require_packages("ray")
    hosts, datastore = served
    path, filesystem, read, found = ask(hosts[1], datastore, RAY, tmp_path)
    kind, root = URLS.get(datastore.kind, ("local", datastore.root))
    assert (path, filesystem, read) == (f"{root}/mf.ray_decorator/Meets/7/work/0", kind, "weights")
    # Metaflow's own way to the same place shows the same.
    assert found == {"search/.validate_storage_marker": "", "search/checkpoint/deep/model": "weights"}


@pytest.mark.parametrize(
    ("root", "endpoint", "url"),
    [
        ("box/flows", "https://me.blob.core.windows.net/", "abfs://box@me.dfs.core.windows.net/flows"),
        ("box", "https://me.blob.core.chinacloudapi.cn", "abfs://box@me.dfs.core.chinacloudapi.cn"),
        ("box/flows", "https://10.0.0.5:10000/me", "abfs://me@10.0.0.5:10000/box/flows"),
        ("box/flows", "", "abfs://box/flows"),
    ],
)
def test_an_azure_account_s_endpoint_says_where_its_containers_are(root: str, endpoint: str, url: str) -> None:
    assert azure_url(root, endpoint) == url
