"""What ``current.torch.run`` would start, and with what: decided without starting anything."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest
from support.paths import TESTS

from metaflow_extensions.gang.core.attributes import declared_port, read_port
from metaflow_extensions.gang.core.calls.entrypoint import read_entrypoint
from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.gang.arguments import check_alike
from metaflow_extensions.gang.core.machine.network import network_variables
from metaflow_extensions.gang.core.ranks.functions import RANK_MAIN
from metaflow_extensions.gang.launchers.torchrun.launcher import ALIKE, differ
from metaflow_extensions.gang.launchers.torchrun.options import (
    check_nodes,
    choose_launcher,
    choose_nproc,
    read_options,
)
from metaflow_extensions.gang.launchers.torchrun.plan import RANK_JOB, AgentsRanks, Job, plan, verbatim
from metaflow_extensions.gang.launchers.torchrun.single_node import single_node_argv

ARGS = "torchrun_args"


def job(torchrun_args: Any = None, **changes: Any) -> Job:
    known: dict[str, Any] = {
        "entrypoint": "train.py",
        "arguments": ("--epochs", "3"),
        "options": read_options(torchrun_args),
        "nprocs": (2, 1),
        "node_index": 0,
        "main_address": "10.0.0.1",
        "port": 20001,
        "port_is_ours": True,
        "launcher": "direct",
        "environ": {"PATH": "/bin", "RANK": "stale"},
        "folder": "/private",
        "key": "torchrun-1-0",
        "python": "/bin/python3",
    }
    return Job(**{**known, **changes})


def test_direct_ranks_get_what_torchruns_agent_would_tell_them() -> None:
    made = plan(job())
    assert [process.argv for process in made.processes] == [
        ("/bin/python3", "-u", RANK_MAIN, "--script", "train.py", "--epochs", "3")
    ] * 2
    assert [(process.title, process.rank, process.label) for process in made.processes] == [
        ("rank 0", 0, "[rank 0] "),
        ("rank 1", 1, "[rank 1] "),
    ]
    assert made.processes[1].env == {
        "PATH": "/bin",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "0",
        "ROLE_RANK": "1",
        "ROLE_NAME": "default",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_WORLD_SIZE": "3",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "20001",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCHELASTIC_ERROR_FILE": "/private/torchrun-1-0-rank-1-error.json",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    assert made.processes[1].error_file == made.processes[1].env["TORCHELASTIC_ERROR_FILE"]
    assert made.key == "torchrun-1-0"


def test_nodes_may_have_different_numbers_of_ranks() -> None:
    (only,) = plan(job(node_index=1)).processes
    assert (only.rank, only.label) == (2, "")
    assert {
        name: only.env[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    } == {
        "RANK": "2",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "1",
        "LOCAL_WORLD_SIZE": "1",
        "WORLD_SIZE": "3",
    }


@pytest.mark.parametrize(
    ("torchrun_args", "argv"),
    [
        ({"module": None}, ("/bin/python3", "-u", RANK_MAIN, "--module", "train.py")),
        ({"m": True}, ("/bin/python3", "-u", RANK_MAIN, "--module", "train.py")),
        ({"module": False}, ("/bin/python3", "-u", RANK_MAIN, "--script", "train.py")),
        (["no-python"], ("train.py",)),
    ],
)
def test_modules_and_programs(torchrun_args: Any, argv: tuple[str, ...]) -> None:
    assert plan(job(torchrun_args, arguments=())).processes[0].argv == argv


def test_the_users_values_win_in_the_ranks_environment() -> None:
    environ = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "OMP_NUM_THREADS": "8", "PYTHON_EXEC": "/opt/python"}
    process = plan(job(environ=environ)).processes[0]
    assert (process.env["TORCH_NCCL_ASYNC_ERROR_HANDLING"], process.env["OMP_NUM_THREADS"]) == ("0", "8")
    assert process.argv[0] == "/opt/python"


def test_the_agent_gets_its_options_in_the_old_order() -> None:
    made = plan(job({"max-restarts": 2, "rdzv_conf": "timeout=9"}, launcher="torchrun", node_index=1))
    (agent,) = made.processes
    assert agent.argv == (
        *("/bin/python3", "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--master_addr", "10.0.0.1", "--master_port", "20001", "--node_rank", "1"),
        *("--nproc_per_node", "1", "--log_dir", "/private/torchrun-1-0-agent"),
        *("--max_restarts=2", "--rdzv_conf=timeout=9"),
        *("--no_python", "--rdzv_endpoint", "10.0.0.1:20001", "/bin/python3", "-I", "-S", RANK_JOB, "--record"),
        *("/private/torchrun-1-0-rank-{rank}-error.json", "/bin/python3", "-u", RANK_MAIN, "--script", "train.py"),
        *("--epochs", "3"),
    )
    assert agent.env == {
        "PATH": "/bin",
        "RANK": "stale",
        "TORCHELASTIC_ERROR_FILE": "/private/torchrun-1-0-agent-error.json",
    }
    assert (agent.rank, agent.label) == (None, "")
    assert agent.error_file == "/private/torchrun-1-0-rank-{rank}-error.json"


@pytest.mark.parametrize(
    ("torchrun_args", "command"),
    [
        ({"module": None, "max_restarts": 0}, ("/bin/python3", "-u", RANK_MAIN, "--module", "train.py")),
        ({"no_python": None, "max_restarts": 0}, ("train.py",)),
    ],
)
def test_modules_and_programs_have_their_ends_recorded_under_the_agent(
    torchrun_args: Any, command: tuple[str, ...]
) -> None:
    (agent,) = plan(job(torchrun_args, launcher="torchrun", arguments=())).processes
    assert agent.argv[-len(command) :] == command and RANK_JOB in agent.argv
    assert agent.argv.count("--no_python") == 1 and agent.argv.count("--module") == (RANK_MAIN in command)


def test_what_has_the_agent_start_ranks_in_its_own_way_is_left_to_it() -> None:
    for made in (
        plan(job({"run_path": None}, launcher="torchrun")),
        plan(job({"max_restarts": 0}, launcher="torchrun", environ={"PET_MODULE": "1"})),
    ):
        (agent,) = made.processes
        assert agent.argv[-3:] == ("train.py", "--epochs", "3") and RANK_JOB not in agent.argv
        assert agent.error_file == agent.env["TORCHELASTIC_ERROR_FILE"]


@pytest.mark.parametrize(
    ("options", "environ", "node", "told"),
    [
        ({"rdzv_backend": "c10d"}, {}, 0, ["--local_addr=10.0.0.1", "--rdzv_conf=is_host=1"]),
        ({"rdzv_backend": "c10d"}, {}, 12, ["--local_addr=node-000012", "--rdzv_conf=is_host=0"]),
        ({"rdzv_conf": "timeout=9"}, {"PET_RDZV_BACKEND": "c10d"}, 0, ["--local_addr=10.0.0.1", "timeout=9,is_host=1"]),
        (
            {"rdzv_backend": "c10d", "rdzv_conf": "is_host=0", "local_addr": "me"},
            {},
            0,
            ["--local_addr=me", "=is_host=0"],
        ),
        ({"rdzv_backend": "c10d", "rdzv_endpoint": "store:1"}, {}, 1, ["--local_addr=node-000001"]),
        ({"standalone": None}, {}, 0, ["--local_addr=10.0.0.1"]),
        ({"rdzv_backend": "static"}, {}, 0, []),
    ],
)
def test_the_dynamic_rendezvous_asks_for_no_name_and_keeps_the_order_of_nodes(
    options: dict[str, Any], environ: dict[str, str], node: int, told: list[str]
) -> None:
    """An address other than node 0's is only compared, as text, with the others'."""
    made = job(options, launcher="torchrun", node_index=node, environ=environ, nprocs=(1,) * 13)
    argv = plan(made).processes[0].argv
    found = [word for word in argv if "local_addr" in word or "rdzv_conf" in word]
    assert len(found) == len(told) and all(any(word.endswith(end) for word in found) for end in told), argv


def test_what_the_user_tells_the_agent_is_not_told_twice() -> None:
    options = {"log_dir": "logs", "rdzv_endpoint": "host:1", "nproc_per_node": 2, "nnodes": 2, "master_port": 20001}
    argv = plan(job(options, launcher="torchrun")).processes[0].argv
    assert sum("log_dir" in word for word in argv) == 1
    assert sum("rdzv_endpoint" in word for word in argv) == 1
    assert sum("nproc_per_node" in word for word in argv) == 1
    assert sum("master_port" in word for word in argv) == 1


def test_ipv6_addresses_are_bracketed_for_the_agent() -> None:
    argv = plan(job(launcher="torchrun", main_address="fd00::1")).processes[0].argv
    assert argv[argv.index("--rdzv_endpoint") + 1] == "[fd00::1]:20001"


def test_only_our_own_choice_of_a_port_may_be_replaced() -> None:
    text = (TESTS / "samples" / "torchrun" / "port_taken.txt").read_text()
    used = int(re.search(r"port: (\d+)", text)[1])  # type: ignore[index]
    ours, other, users = (plan(job(port=used)), plan(job(port=used + 1)), plan(job(port=used, port_is_ours=False)))
    assert ours.port_taken and re.search(ours.port_taken, text)
    assert other.port_taken and not re.search(other.port_taken, text)
    assert users.port_taken is None


def test_dicts_and_lists_and_both_spellings_read_the_same() -> None:
    same: list[Any] = [
        {"max_restarts": 3, "tee": "3", "standalone": None},
        {"max-restarts": "3", "t": 3, "standalone": True},
        {"--max-restarts": 3, "tee": 3, "standalone": ""},
        ["max_restarts", 3, "tee", "3", "standalone", None],
        ["--max-restarts=3", "tee=3", "standalone"],
    ]
    assert [dict(read_options(args).values) for args in same] == [
        {"max_restarts": "3", "tee": "3", "standalone": None}
    ] * len(same)
    assert dict(read_options(None).values) == dict(read_options([]).values) == dict(read_options({}).values) == {}


@pytest.mark.parametrize(
    ("wanted", "torchrun_args", "environ", "chosen"),
    [
        (None, {}, {}, "direct"),
        (None, {"nproc_per_node": 2, "master-port": 3339, "module": None}, {}, "direct"),
        (None, {"max_restarts": 1}, {}, "torchrun"),
        (None, ["log-dir", "x"], {}, "torchrun"),
        (None, {"unheard_of": 1}, {}, "torchrun"),
        (None, {}, {"PET_MAX_RESTARTS": "1"}, "torchrun"),
        (None, {}, {"PET_NNODES": "1", "PETER": "1"}, "direct"),
        ("torchrun", {}, {}, "torchrun"),
        ("direct", {"nnodes": 2}, {"PET_TEE": "3"}, "direct"),
    ],
)
def test_the_options_choose_the_launcher(
    wanted: str | None, torchrun_args: Any, environ: Mapping[str, str], chosen: str
) -> None:
    assert choose_launcher(wanted, read_options(torchrun_args), environ) == chosen


@pytest.mark.parametrize(
    ("call", "torchrun_args", "decorator", "gpus", "expected"),
    [
        (None, {}, None, 0, 1),
        (None, {}, None, 4, 4),
        (None, {}, 3, 4, 3),
        (None, {"nproc-per-node": "2"}, 3, 4, 2),
        (5, {}, 3, 4, 5),
        ("gpu", {}, None, 4, 4),
        ("cpu", {}, None, 4, 8),
        ("auto", {}, 3, 0, 1),
    ],
)
def test_who_says_how_many_ranks(call: Any, torchrun_args: Any, decorator: Any, gpus: int, expected: int) -> None:
    assert choose_nproc(call, read_options(torchrun_args), decorator, gpus, cpus=8) == expected


def refused(function: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(BadAttribute) as caught:
        function(*args, **keywords)
    message = str(caught.value)
    assert message.endswith((".", "?")) and "\n" not in message
    return message


@pytest.mark.parametrize("value", [0, -1, True, "two", 1.5, "xpu"])
def test_numbers_of_ranks_that_cannot_be_meant(value: Any) -> None:
    assert repr(value) in refused(choose_nproc, value, read_options(None), None, 1, 1)


def test_contradictions_are_told() -> None:
    assert "given twice: 2 to run(), and '3'" in refused(
        choose_nproc, 2, read_options({"nproc_per_node": 3}), None, 0, 1
    )
    assert "this node has no GPU" in refused(choose_nproc, "gpu", read_options(None), None, 0, 1)
    assert "fixed number of nodes, here 4" in refused(check_nodes, read_options({"nnodes": "1:4"}), 0, 4)
    assert "this gang has 4" in refused(check_nodes, read_options({"nnodes": 2}), 0, 4)
    assert "node_rank=1 on node 0" in refused(check_nodes, read_options({"node-rank": 1}), 0, 4)
    assert "for one node" in refused(check_nodes, read_options(["standalone"]), 0, 4)
    assert "both module and no_python" in refused(check_nodes, read_options(["m", "no_python"]), 0, 1)
    assert 'Leave out @torchrun(launcher="direct")' in refused(choose_launcher, "direct", read_options({"tee": 3}), {})
    assert "takes no value" in refused(read_options, {"standalone": 3})
    check_nodes(read_options({"nnodes": "4:4", "node_rank": 3}), 3, 4)


@pytest.mark.parametrize("value", [0, 65536, "http", True, 1.5])
def test_ports_that_are_none(value: Any) -> None:
    assert repr(value) in refused(read_port, value, "master_port")


def test_ports_as_people_write_them() -> None:
    assert [read_port(value, "master_port") for value in (None, "", "3339", 3339)] == [None, None, 3339, 3339]


def test_the_port_of_a_pod_is_the_ranks_unless_they_have_another() -> None:
    found = [declared_port({"MF_MASTER_PORT": value}) for value in ("29500", "None", "")]
    assert [*found, declared_port({})] == [29500, None, None, None]
    assert "70000" in refused(declared_port, {"MF_MASTER_PORT": "70000"})


def test_nodes_that_disagree_all_say_so() -> None:
    answers = [{"launcher": "direct", "master_port": None}, {"launcher": "torchrun", "master_port": None}]
    assert "'direct' on node 0 and 'torchrun' on node 1" in refused(check_alike, answers, tuple(ALIKE), differ)
    check_alike(answers[:1] * 3, tuple(ALIKE), differ)


def test_interfaces_are_chosen_only_where_the_user_chose_none() -> None:
    assert network_variables("127.0.0.1", {}) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert network_variables("127.0.0.1", {"NCCL_SOCKET_IFNAME": "eth7"}) == {}
    assert network_variables("no.such.host.invalid", {}) == {}


def test_misspelt_entrypoints_are_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    folder = str(tmp_path)
    message = refused(read_entrypoint, "trian.py", None, {}, folder, ARGS)
    assert f"There is no script {tmp_path}/trian.py." in message and "Did you mean train.py?" in message
    assert "There is no folder" in refused(read_entrypoint, "src/train.py", None, {}, folder, ARGS)
    assert "needs an entrypoint" in refused(read_entrypoint, None, None, {}, folder, ARGS)
    assert "is a folder without a __main__.py" in refused(read_entrypoint, ".", None, {}, folder, ARGS)
    assert "The entrypoint is a int" in refused(read_entrypoint, 3, None, {}, folder, ARGS)
    assert "There is no module 'trian'" in refused(
        read_entrypoint, "trian", None, {"module": None}, folder, "torchrun_args"
    )
    assert "There is no program 'trian'" in refused(read_entrypoint, "trian", None, {"no_python": None}, folder, ARGS)
    assert "A lambda has no name" in refused(read_entrypoint, lambda: 1, None, {}, folder, ARGS)
    assert "torchrun_args has module" in refused(read_entrypoint, len, None, {"module": None}, folder, ARGS)
    assert "entrypoint_args:" in refused(read_entrypoint, "train.py", "--epochs 3", {}, folder, ARGS)
    found = read_entrypoint(
        Path("train.py"), {"lr": 1e-5, "name": 'say "é"', "quiet": None}, {}, folder, "torchrun_args"
    )
    assert (found.target, found.arguments) == ("train.py", ("--lr", "1e-05", "--name", 'say "é"', "--quiet"))
    assert read_entrypoint("train", ["--x"], {"module": None}, folder, ARGS).arguments == ("--x",)


def test_dollar_signs_reach_the_script_under_the_agent_as_well() -> None:
    from string import Template  # what the agent does with each argument

    for text in ("$HOME", "a$$b", "100$", "${x}"):
        assert Template(verbatim(text)).safe_substitute(local_rank="1") == text
    assert Template(verbatim("out-${local_rank}")).safe_substitute(local_rank="1") == "out-1"


def test_a_single_node_meets_on_a_port_of_its_own_choice() -> None:
    def argv(**options: Any) -> list[str]:
        given = read_options(options)
        ranks = AgentsRanks("train.py", ("--x",), given, {}, "/bin/python3", "/private/rank-{rank}")
        return single_node_argv(given, 2, "/private", ranks)

    assert argv(max_restarts=1) == [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
        *("--local_addr", "127.0.0.1", "--log_dir", "/private", "--max_restarts=1", "--no_python"),
        *("/bin/python3", "-I", "-S", RANK_JOB, "--record", "/private/rank-{rank}"),
        *("/bin/python3", "-u", RANK_MAIN, "--script", "train.py", "--x"),
    ]
    chosen = argv(master_port=4000)
    assert "--standalone" not in chosen and chosen[chosen.index("--master_port") + 1] == "4000"
