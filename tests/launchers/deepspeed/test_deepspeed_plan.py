"""What ``current.deepspeed.run`` would start, and with what: decided without starting anything."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.ranks import rank_wrapper
from metaflow_extensions.gang.core.ranks.rank_report import REPORT
from metaflow_extensions.gang.core.ranks.torch_extensions import hold_extensions
from metaflow_extensions.gang.launchers.deepspeed.call_files import with_files
from metaflow_extensions.gang.launchers.deepspeed.environment import (
    accelerator_variables,
    difference,
    environment_file,
)
from metaflow_extensions.gang.launchers.deepspeed.layout import Layout, layout
from metaflow_extensions.gang.launchers.deepspeed.options import choose_transport, read_options
from metaflow_extensions.gang.launchers.deepspeed.plan import (
    Job,
    hostfile_text,
    launcher_environment,
    plan,
    rank_record,
    unshown,
)

NAMES = [["node0", "10.0.0.1", "a"], ["node1", "10.0.0.2", "b"], ["node2", "10.0.0.3", "c"]]


def refused(function: Any, *args: Any) -> str:
    with pytest.raises(BadAttribute) as caught:
        function(*args)
    return str(caught.value)


def chosen(args: Any, slots: tuple[int, ...] = (2, 2, 2)) -> Layout:
    return layout(slots, NAMES[: len(slots)], read_options(args))


def job(args: Any = None, **changes: Any) -> Job:
    known: dict[str, Any] = {
        "name": "deepspeed-1",
        "layout": chosen(args),
        "node_index": 0,
        "options": read_options(args),
        "transport": "none",
        "rsh": "",
        "interface": "eth0",
        "main_address": "10.0.0.1",
        "port": 20001,
        "port_is_ours": True,
        "environ": {"PATH": "/bin"},
        "folder": "/private",
        "is_root": False,
        "python": "/bin/python3",
    }
    return Job(**{**known, **changes})


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (None, {}),
        ({"num_gpus": 2, "bind_cores_to_rank": True, "quiet": False}, {"num_gpus": "2", "bind_cores_to_rank": None}),
        ({"num-nodes": 1, "module": None}, {"num_nodes": "1", "module": None}),
        (["--num_gpus=2", "--module", "-i", "a:0"], {"num_gpus": "2", "module": None, "include": "a:0"}),
        (["--num_accelerators", "3", "-q"], {"num_gpus": "3", "quiet": None}),
    ],
)
def test_options_are_read(given: Any, values: dict[str, str | None]) -> None:
    assert read_options(given).values == values


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"master_addr": "10.0.0.9"}, "has master_addr, but the gang knows it"),
        (["--hostfile", "mine"], "has hostfile, but the gang writes one"),
        ({"node_rank": 1}, "each node knows its own"),
        (["train.py"], "where the name of an option is expected"),
        (["--module=yes"], "module takes no value"),
        (["--num_gpus"], "num_gpus needs a value"),
    ],
)
def test_options_that_cannot_be_meant(given: Any, said: str) -> None:
    assert said in refused(read_options, given)


@pytest.mark.parametrize(
    ("wanted", "given", "taken"),
    [
        ("auto", None, "none"),
        ("auto", {"launcher": "PDSH"}, "ssh"),
        ("auto", {"no_ssh": True}, "none"),
        ("ssh", None, "ssh"),
        ("channel", {"launcher": "mpich"}, "channel"),
        ("none", None, "none"),
    ],
)
def test_the_transport(wanted: str, given: Any, taken: str) -> None:
    assert choose_transport(wanted, read_options(given)) == taken


def test_transports_that_contradict() -> None:
    assert "each node starts its own" in refused(choose_transport, "none", read_options({"launcher": "pdsh"}))
    assert "has no_ssh, but" in refused(choose_transport, "ssh", read_options({"no_ssh": True}))


# ---------------------------------------------------------------- who takes part


@pytest.mark.parametrize(
    ("given", "nodes", "slots"),
    [
        (None, (0, 1, 2), ((0, 1), (0, 1), (0, 1))),
        ({"num_nodes": 2}, (0, 1), ((0, 1), (0, 1))),
        ({"num_gpus": 1}, (0, 1, 2), ((0,), (0,), (0,))),
        ({"num_nodes": 1, "num_gpus": 4}, (0,), ((0, 1, 2, 3),)),
        ({"include": "b@10.0.0.1:1"}, (0, 1), ((1,), (0, 1))),
        ({"include": "node2:1,0,1"}, (2,), ((0, 1),)),
        ({"include": "LOCALHOST".lower()}, (0,), ((0, 1),)),
        ({"exclude": "1@c:0"}, (0, 2), ((0, 1), (1,))),
    ],
)
def test_who_takes_part(given: Any, nodes: tuple[int, ...], slots: tuple[tuple[int, ...], ...]) -> None:
    assert chosen(given) == Layout(nodes, slots)


def test_a_part_of_the_slots_is_named_to_deepspeed() -> None:
    part = job({"include": "b@a:1"})
    assert hostfile_text(part) == "node0 slots=2\nnode1 slots=2\n"
    assert "--include=node0:1@node1:0,1" in plan(part).processes[0].argv
    assert part.layout.nprocs(3) == (1, 2, 0)
    whole = plan(job({"num_nodes": 2})).processes[0].argv
    assert not [word for word in whole if word.startswith(("--include", "--num_"))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_nodes": 4}, "num_nodes=4, but this gang has 3"),
        ({"num_gpus": 0}, "1 or more"),
        ({"include": "d"}, "names 'd', and no node is called so. The nodes are node0, node1, node2"),
        ({"include": "a:2"}, "node 0 has the slots 0 to 1, and not '2'"),
        ({"include": "a", "exclude": "b"}, "takes only one kind"),
        ({"include": "a", "num_gpus": 1}, "takes only one kind"),
        ({"exclude": "0@1@2"}, "leave no slot to run on"),
    ],
)
def test_parts_that_cannot_be_meant(given: Any, said: str) -> None:
    assert said in refused(chosen, given)


# ---------------------------------------------------------------- commands


def test_each_node_starts_its_own() -> None:
    (process,) = plan(job({"bind_cores_to_rank": True, "log_level": "warning"}, node_index=2)).processes
    assert process.argv == (
        *("/bin/python3", "-m", "deepspeed.launcher.runner", "--hostfile=/private/deepspeed-1-hostfile"),
        *("--master_addr=10.0.0.1", "--master_port=20001", "--bind_cores_to_rank", "--log_level=warning"),
        *("--no_ssh", "--node_rank=2", "--no_python", "--no_local_rank"),
        *("/bin/python3", "-I", "-S", rank_wrapper.__file__, "deepspeed-1"),
    )
    assert process.env == {"PATH": "/bin", rank_wrapper.FOLDER: "/private"} and process.report == REPORT
    assert process.error_file == "/private/deepspeed-1-rank-{rank}-error.json"
    assert [job(node_index=index).starts_here for index in range(3)] == [True, True, True]
    left_out = job({"include": "b"}, node_index=2)
    assert not left_out.starts_here


def test_shared_memory_is_that_of_this_call() -> None:
    pattern = job().shared_memory
    assert fnmatch.fnmatch("/dev/shm/deepspeed_allreduce_buffer_0_10.0.0.1_20001_3", pattern)
    assert not fnmatch.fnmatch("/dev/shm/deepspeed_allreduce_buffer_0_10.0.0.1_20002_3", pattern)


def test_control_starts_all_by_pdsh() -> None:
    remote = job({"include": "b"}, transport="ssh", rsh="/private/deepspeed")
    words = plan(remote).processes[0].argv
    assert {"--no_ssh_check", "--launcher=pdsh", "--launcher_args=-N", "--force_multi"} <= set(words)
    assert "--no_ssh" not in words
    assert [job(transport="ssh", node_index=index).starts_here for index in range(3)] == [True, False, False]


def test_mpirun_reaches_the_others_the_same_way() -> None:
    remote = job({"launcher": "openmpi", "launcher_args": "--mca x 1"}, transport="channel", rsh="/rsh", is_root=True)
    (process,) = plan(remote).processes
    (words,) = (word for word in process.argv if word.startswith("--launcher_args="))
    assert "--mca btl_tcp_if_include eth0" in words and words.endswith(" --mca x 1")
    assert process.env["HYDRA_LAUNCHER_EXEC"] == "/rsh/ssh"
    assert process.env["OMPI_MCA_plm_rsh_agent"] == "/rsh/ssh:sh"
    assert process.env["OMPI_ALLOW_RUN_AS_ROOT"] == "1"


def test_mpichs_ranks_start_by_deepspeeds_helper() -> None:
    words = plan(job({"launcher": "mpich"}, transport="channel", rsh="/rsh")).processes[0].argv
    assert words[-3:] == ("--no_local_rank", rank_wrapper.__file__, "deepspeed-1") and "--no_python" not in words


def test_what_the_launcher_would_write_on_command_lines_is_kept_from_it() -> None:
    secrets = {"MLFLOW_TRACKING_PASSWORD": "x", "TORCH_NCCL_X": "x", "PYTHON_KEYRING": "x", "UCX_TLS": "x"}
    kept = {"PYTHONPATH": "p", "HOME": "/h", "AWS_SECRET_ACCESS_KEY": "x"}  # those it does not write anywhere
    assert unshown({**secrets, **kept}) == kept
    environ = launcher_environment(job(transport="ssh", rsh="/rsh"))
    assert environ["PATH"] == "/rsh:/bin" and not os.path.exists(environ["DS_ENV_FILE"])


# ---------------------------------------------------------------- a rank's wrapper


def record(args: Any = None, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "program": (sys.executable,),
        "arguments": ("-c", "pass"),
        "changed": {},
        "devices": (),
        "is_function": True,
    }
    return rank_record(job(args), **{**known, **changes})


def test_a_rank_gets_what_the_step_changed_but_for_what_is_the_launchers() -> None:
    changed = {"TOKEN": "new", "RANK": "9", "GONE": None, "OMP_NUM_THREADS": "8"}
    started = {"RANK": "1", "LOCAL_RANK": "1", "GONE": "x", "OMP_NUM_THREADS": "2", "KEPT": "k"}
    env = rank_wrapper.rank_environment(record({"bind_cores_to_rank": None}, changed=changed), dict(started))
    assert (env["TOKEN"], env["RANK"], env["OMP_NUM_THREADS"], env["KEPT"]) == ("new", "1", "2", "k")
    assert "GONE" not in env and env["MASTER_ADDR"] == "10.0.0.1"
    assert env["TORCHELASTIC_ERROR_FILE"] == "/private/deepspeed-1-rank-1-error.json"
    assert rank_wrapper.rank_environment(record(changed=changed), dict(started))["OMP_NUM_THREADS"] == "8"


def test_a_rank_of_mpi_learns_what_torch_calls_it() -> None:
    env = rank_wrapper.rank_environment(record(), {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"})
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["MASTER_PORT"]) == ("3", "4", "1", "20001")


def test_gpus_are_those_of_this_nodes_share() -> None:
    env = rank_wrapper.rank_environment(record(devices=("2", "GPU-5")), {"CUDA_VISIBLE_DEVICES": "0,1", "RANK": "0"})
    assert env["CUDA_VISIBLE_DEVICES"] == "2,GPU-5"


def ended(tmp_path: Path, script: str, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    told = record(program=(sys.executable, "-c", script), arguments=arguments, **changes)
    (tmp_path / "job.json").write_text(json.dumps(told))
    env = {rank_wrapper.FOLDER: str(tmp_path), "RANK": "3", "LOCAL_RANK": "1", "METAFLOW_GANG_ID": "f00.1"}
    argv = [sys.executable, "-I", "-S", rank_wrapper.__file__, "job"]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)


BOTH = "import os, time; rank, wrapper = os.getpid(), os.getppid()"


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(7)", 7, "[gang] rank 3 (node 1) ended with 7\n"),
        ("import os; os.kill(os.getpid(), 9)", 137, "[gang] rank 3 (node 1) ended with -9\n"),
        ("import os; os.kill(os.getpid(), 15)", 143, "[gang] rank 3 (node 1) ended with -15\n"),
        # Ended by its launcher, which has another's failure to tell: that sends SIGTERM to the wrapper, too.
        (f"{BOTH}; os.kill(wrapper, 15); time.sleep(60)", 143, ""),
        (f"{BOTH}; os.fork() or (os.kill(rank, 15), os.kill(wrapper, 15), os._exit(0)); time.sleep(60)", 143, ""),
    ],
)
def test_a_rank_that_fails_is_told(tmp_path: Path, script: str, code: int, said: str) -> None:
    done = ended(tmp_path, script)
    assert (done.returncode, done.stderr) == (code, said)


def test_arguments_of_a_rank_pass_as_they_are(tmp_path: Path) -> None:
    hostile = ["a'; echo foo", '$HOME `id` "x"', "two\nlines", "", "é\udcff"]
    done = ended(tmp_path, "import sys; print(ascii(sys.argv[1:]))", *hostile, is_function=False)
    assert done.stdout == ascii(["--local_rank=1", *hostile]) + "\n"


# ---------------------------------------------------------------- files and variables


def test_a_configuration_as_a_dict_becomes_a_private_file(tmp_path: Path) -> None:
    given = {"deepspeed_config": {"train_batch_size": 8}, "epochs": 3}
    args = with_files(given, str(tmp_path), "deepspeed-1")
    assert isinstance(args, dict) and args["epochs"] == 3 and given["deepspeed_config"] == {"train_batch_size": 8}
    path = Path(args["deepspeed_config"])
    assert json.loads(path.read_text()) == {"train_batch_size": 8} and path.stat().st_mode & 0o777 == 0o600
    assert "JSON cannot hold" in refused(with_files, {"c": {"x": object()}}, str(tmp_path), "d")
    assert with_files(["--x"], str(tmp_path), "d") == ["--x"]


def test_deepspeeds_own_file_of_variables_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".deepspeed_env").write_text("A=home\nB=b = c\n\n")
    (tmp_path / ".deepspeed_env").write_text("A=here\n")
    assert environment_file({}, str(tmp_path)) == {"A": "here", "B": "b = c"}
    assert environment_file({"DS_ENV_FILE": "none"}, str(tmp_path)) == {}


def test_what_changed() -> None:
    assert difference({"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "x", "D": "4"}) == {"B": "x", "C": None, "D": "4"}


def test_the_accelerator_is_named_where_there_is_none() -> None:
    assert accelerator_variables(0, {}) == {"DS_ACCELERATOR": "cpu"}
    assert accelerator_variables(1, {}) == accelerator_variables(0, {"DS_ACCELERATOR": "xpu"}) == {}


@pytest.mark.slow
def test_a_lock_that_a_killed_builder_left_is_removed_unless_others_build(tmp_path: Path) -> None:
    folder = tmp_path / "metaflow-gang" / "torch_extensions"
    lock = folder / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    with (folder / "in-use").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert held_by_another_process(environ) == str(folder) and lock.exists()
    assert held_by_another_process(environ) == str(folder) and not lock.exists()
    assert hold_extensions({"TORCH_EXTENSIONS_DIR": "/mine"}, str(tmp_path)) == {}


def test_extensions_that_torch_s_own_folder_has_are_taken_over_unless_a_lock_is_there(tmp_path: Path) -> None:
    for name in ("whole", "broken", "both"):
        extension = tmp_path / "torch_extensions" / "py311_cpu" / name
        extension.mkdir(parents=True)
        (extension / f"{name}.so").write_text("image")
        os.utime(extension / f"{name}.so", (1000, 1000))
    (tmp_path / "torch_extensions" / "py311_cpu" / "broken" / "lock").touch()
    own = tmp_path / "metaflow-gang" / "torch_extensions" / "py311_cpu"
    (own / "both").mkdir(parents=True)
    held_by_another_process({"XDG_CACHE_HOME": str(tmp_path)})
    assert sorted(path.name for path in own.rglob("*")) == ["both", "whole", "whole.so"]
    assert (own / "whole" / "whole.so").stat().st_mtime == 1000


def held_by_another_process(environ: dict[str, str]) -> str:
    """What a task would be told; its lock goes with it."""
    code = (
        "import metaflow, json, sys\n"
        "from metaflow_extensions.gang.core.ranks.torch_extensions import hold_extensions\n"
        "print(hold_extensions(json.loads(sys.argv[1]), '/nowhere')['TORCH_EXTENSIONS_DIR'])"
    )
    argv = [sys.executable, "-c", code, json.dumps(environ)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
