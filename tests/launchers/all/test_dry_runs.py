"""Dry runs: what is shown is what the ranks get when the same call starts them, for every launcher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dry_runs import SECRET, SEEN, Command, ranks, shown
from dry_runs import compare as compare_with
from support.flows import FlowRun, FlowRunner
from support.frameworks.horovod import stand_in
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with
from support.requirements import require_packages, require_tool

END_S = 240.0
"""For a framework to be imported many times over, on a machine that is busy: tells an end from a hang."""

FLOW = """
import os, sys
from metaflow import FlowSpec, current, step, IMPORTED

class Dry(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @DECORATOR
    @step
    def work(self):
        os.environ["OWN_API_TOKEN"] = "never-to-be-seen"
        self.environ = dict(os.environ)
        arguments = {"key": "never-to-be-seen", "text": "two words"}
        shown = CALL, dry_run=True)
        assert shown is None
        assert not [name for name in os.listdir() if name.startswith("rank-")], "a dry run starts nothing"
        CALL)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Dry()
"""


def flow(decorator: str, call: str, imported: str = "") -> str:
    text = FLOW.replace("IMPORTED", imported or decorator.partition("(")[0]).replace("DECORATOR", decorator)
    return text.replace("CALL", call)


def compare(run: FlowRun, command: Command, title: str, rank: dict[str, Any], set_by_others: str = r"(?!)") -> None:
    """As :func:`compare_with`, where the body has kept its environment as an artifact."""
    compare_with(run.node_tasks("work")[rank["node"]].data.environ, command, title, rank, set_by_others)


DIRECT = {
    "torchrun": flow("torchrun", 'current.torch.run({"nproc_per_node": 2}, "seen.py", arguments'),
    "tensorflow": flow(
        "tensorflow", 'current.tensorflow.run("seen.py", arguments, env={"MODEL_KEY": "never-to-be-seen"}'
    ),
    "gang": flow(
        "gang",
        'current.gang.run_together([sys.executable, "seen.py", "--key", "never-to-be-seen", "--text", '
        '"two words"], env={"RANK": str(current.gang.node_index)}',
    ),
    "horovod": flow("gang", 'horovod_run("seen.py", arguments, nproc_per_node=2', "gang, horovod_run"),
}


@pytest.mark.parametrize("launcher", DIRECT)
def test_ranks_that_the_gang_starts(flow_run: FlowRunner, tmp_path: Path, launcher: str) -> None:
    env = {"PYTHONPATH": str(stand_in(tmp_path))} if launcher == "horovod" else None
    run = flow_run(DIRECT[launcher], env=env, files={"seen.py": SEEN}).ok(END_S)
    commands = [one for one in shown(run.output) if one.title.startswith(("rank", "seen.py", "python"))]
    assert [one.node for one in commands] == [0, 1]
    assert SECRET not in run.output
    found = ranks(run.folder)
    each = 1 if launcher in ("gang", "tensorflow") else 2
    assert list(found) == list(range(2 * each))
    for number, rank in found.items():
        command = commands[number // each]
        assert rank["node"] == command.node
        assert command.argv[-4:] == ["--key", "***", "--text", "two words"]
        compare(run, command, f"rank {number}", rank)
    if launcher == "torchrun":
        # The first call has the port that all nodes know from the start, dry or not.
        assert commands[0].environ["MASTER_PORT"] == found[0]["environ"]["MASTER_PORT"]
    if launcher == "horovod":
        server = next(one for one in shown(run.output) if "rendezvous" in one.title)
        assert server.node == 0
        assert server.argv[-2] == commands[0].environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]


def test_ranks_of_torchruns_agent(flow_run: FlowRunner) -> None:
    require_packages("torch")
    call = 'current.torch.run({"nproc_per_node": 2, "max_restarts": 1}, "seen.py", arguments'
    run = flow_run(flow("torchrun", call), files={"seen.py": SEEN}).ok(END_S)
    agents = shown(run.output)[1::2]
    assert [(one.node, one.title) for one in agents] == [(0, "torchrun"), (1, "torchrun")]
    assert SECRET not in run.output
    agents_own = (
        r"(\w+_)?RANK|ROLE_NAME|(\w+_)?WORLD_SIZE|MASTER_\w+|TORCHELASTIC_\w+|OMP_NUM_THREADS|METAFLOW_GANG_RECORD"
    )
    agents_own += r"|TORCH_NCCL_ASYNC_ERROR_HANDLING"
    for rank in (found := ranks(run.folder)).values():
        compare(run, agents[rank["node"]], "torchrun", rank, agents_own)
    assert list(found) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [OPEN_MPI_4, MPICH])
def test_ranks_of_mpirun(flow_run: FlowRunner, kind: str) -> None:
    call = (
        'current.mpi.run(["-n", "2"], "python seen.py", arguments, env={"MODEL_KEY": "never-to-be-seen", "SIZE": "3"}'
    )
    run = flow_run(flow("mpi", call), env={"PATH": path_with(kind)}, files={"seen.py": SEEN}).ok(END_S)
    command, hostfile = shown(run.output)
    assert SECRET not in run.output.replace("key never-to-be-seen", "")  # what mpirun is called with is told as ever
    assert re.fullmatch(r"127\.0\.0\.1[ :](slots=)?2\n", hostfile.file)
    assert hostfile.title.partition(" ")[2] in command.argv
    assert command.environ["SIZE"] == "3"
    found = ranks(run.folder)
    assert list(found) == [0, 1]
    own = r"OMPI_\w+|ORTE_\w+|PMIX?_\w+|PMI_\w+|HYD\w+|MPI\w+|PRTE_\w+|OPAL_\w+|IPATH\w*|GFORTRAN\w*|HFI\w*|RDMAV\w*"
    own += r"|TMPDIR|METAFLOW_MPI_TMPDIR|METAFLOW_GANG_FOLDER|TORCHELASTIC_ERROR_FILE"
    own += r"|PATH|LD_LIBRARY_PATH|PWD|OLDPWD|SHLVL|_"
    for rank in found.values():
        compare(run, command, "mpirun", rank, own)


def test_ranks_of_deepspeed(flow_run: FlowRunner) -> None:
    require_packages("deepspeed")
    call = 'current.deepspeed.run(["--num_gpus", "2"], "seen.py", arguments'
    env = {"NCCL_DEBUG": "WARN"}  # what DeepSpeed's launcher would show is kept from it, and given to the ranks
    run = flow_run(flow("deepspeed", call), env=env, files={"seen.py": SEEN}).ok(END_S)
    commands = shown(run.output)
    each = {one.node: one for one in commands if one.title.startswith("each rank")}
    launchers = {one.node: one for one in commands if one.title == "deepspeed"}
    hostfiles = [one for one in commands if one.title.startswith("hostfile")]
    assert [one.file for one in hostfiles] == ["node0 slots=2\nnode1 slots=2\n"] * 2
    assert SECRET not in run.output
    assert "NCCL_DEBUG" in launchers[0].without
    found = ranks(run.folder)
    assert list(found) == [0, 1, 2, 3]
    own = r"RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_SIZE|CROSS_\w+|MASTER_\w+|CUDA_VISIBLE_DEVICES|TORCHELASTIC_\w+|PYTHONPATH"
    own += r"|DS_\w+|OMP_NUM_THREADS|PYTORCH_\w+|KMP_\w+"  # scikit-learn, where DeepSpeed's launcher imports it, too
    for rank in found.values():
        command, launcher = each[rank["node"]], launchers[rank["node"]]
        number = rank["environ"]["LOCAL_RANK"]
        argv = [word.replace("--local_rank=N", f"--local_rank={number}") for word in command.argv]
        both = Command(command.node, "", argv, {**launcher.environ, **command.environ})
        compare(run, both, "", rank, own)


def test_a_program_on_rays_head(flow_run: FlowRunner) -> None:
    require_packages("ray")
    call = 'current.ray.run("seen.py", arguments, env={"MODEL_KEY": "never-to-be-seen"}'
    run = flow_run(flow("metaflow_ray", call), files={"seen.py": SEEN}).ok(END_S)
    (command,) = shown(run.output)
    assert SECRET not in run.output
    (rank,) = ranks(run.folder).values()
    compare(run, command, "", rank)


def test_a_spare_node_is_said_to_wait(flow_run: FlowRunner) -> None:
    require_packages("torch")
    call = 'current.torch.run(None, "seen.py", arguments'
    run = flow_run(flow("torchrun(spares=1)", call), files={"seen.py": SEEN}).ok(END_S)
    assert re.search(r"\[gang\] node 1 \(.*\)\n.*\[gang\]   no ranks: it waits as a spare node\n", run.output), (
        run.dump()
    )
    assert [one.node for one in shown(run.output) if one.title == "rank 0"] == [0]


WHOLE_RUN = {"METAFLOW_GANG_DRY_RUN": "1"}


def test_a_whole_run_shows_how_ray_would_be_started_and_starts_none(flow_run: FlowRunner) -> None:
    require_packages("ray")
    run = flow_run(flow("metaflow_ray", 'current.ray.run("seen.py"'), env=WHOLE_RUN, files={"seen.py": SEEN})
    output = run.fails(END_S)
    head, worker = shown(output)
    assert (head.node, worker.node) == (0, 1)
    assert "--head" in head.argv
    port = head.argv[head.argv.index("--port") + 1]
    assert worker.argv[worker.argv.index("--address") + 1].endswith(f":{port}")
    assert "Node 0's log shows how Ray would be started on each node." in output
    assert "Ray's head is up" not in output
    assert "Traceback" not in output


GANG = """
from metaflow import FlowSpec, current, gang, step, torchrun

class Whole(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        self.code = current.gang.run(["touch", "started"], env={"A_TOKEN": "never-to-be-seen"})
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.codes = [one.code for one in inputs]
        self.next(self.between)

    @step
    def between(self):
        self.next(self.ranks, num_parallel=2)

    @torchrun
    @step
    def ranks(self):
        self.returned = current.torch.run(entrypoint="seen.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.returned = [one.returned for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Whole()
"""


def test_a_whole_run_starts_nothing(flow_run: FlowRunner) -> None:
    require_tool("touch", "coreutils")
    run = flow_run(GANG, env=WHOLE_RUN, files={"seen.py": SEEN}).ok(END_S)
    assert run.artifact("between", "codes") == [0, 0]
    assert run.artifact("join", "returned") == [None, None]
    assert not (run.folder / "started").exists()
    assert not ranks(run.folder)
    assert run.output.count("    argv: touch started") == 2
    assert SECRET not in run.output
    assert [one.title for one in shown(run.output) if one.argv] == ["rank 0", "rank 1"]


def test_nodes_that_differ_are_told(flow_run: FlowRunner) -> None:
    call = 'current.torch.run(entrypoint="seen.py", dry_run=bool(current.gang.node_index)'
    text = flow("torchrun", call).replace(", dry_run=True)", ")")
    output = flow_run(text, files={"seen.py": SEEN}).fails(END_S)
    assert "The nodes call run() differently: dry_run is False on node 0 and True on node 1." in output


SINGLE = """
import os, sys
from metaflow import FlowSpec, current, step, TorchrunSingleNodeMultiGPU
from metaflow.plugins.deepspeed_libs.executor import DeepspeedExecutor

class Single(FlowSpec):
    @step
    def start(self):
        self.environ = dict(os.environ)
        torchrun = TorchrunSingleNodeMultiGPU().run
        deepspeed = DeepspeedExecutor.for_single_node(self, n_slots=2).run
        self.returned = [
            torchrun(entrypoint="seen.py", nproc_per_node=2, dry_run=True),
            deepspeed(entrypoint="seen.py", push_results_dir_to_cloud=True, local_output_dir="none", dry_run=True),
        ]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Single()
"""


def test_without_a_gang(flow_run: FlowRunner) -> None:
    require_packages("deepspeed")
    run = flow_run(SINGLE, files={"seen.py": SEEN}).ok(END_S)
    assert run.artifact("start", "returned") == [None, None]
    assert not ranks(run.folder)
    torchrun, deepspeed = run.output.split("[gang] Dry run of ")[1:]
    assert "this machine" in torchrun
    assert re.search(r"argv: \S+ -m torch\.distributed\.run --nproc_per_node 2 ", torchrun)
    assert re.search(r"argv: \S+ -m deepspeed\.launcher\.runner --hostfile=", deepspeed)
    assert "| node0 slots=2" in deepspeed
