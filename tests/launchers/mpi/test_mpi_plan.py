"""From what the user asks for to mpirun's command line, without starting anything."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.exceptions import BadAttribute, ToolMissing
from metaflow_extensions.gang.core.guard.rank_reports.reports import Report, Reports, chosen
from metaflow_extensions.gang.core.ranks.rank_report import REPORT
from metaflow_extensions.gang.core.remote_shell.choice import choose_transport
from metaflow_extensions.gang.launchers.mpi import decorator, flavour, plan, program, rank
from metaflow_extensions.gang.launchers.mpi.flavour import INTEL, MPICH, OPEN_MPI_4, OPEN_MPI_5, Flavour


def site(kind: str = OPEN_MPI_4, **changes: Any) -> plan.Site:
    """A gang of two nodes with two slots each, and this MPI."""
    values: dict[str, Any] = {
        "flavour": Flavour(kind, "1", "/mpi/bin"),
        "hostfile": "/private/hostfile",
        "slots": 4,
        "crowded": False,
        "rsh": "/private/rsh",
        "interface": "eth0",
        "is_root": False,
        "tmpdir": "/private/mpi",
        "shared_memory": "",
    }
    return plan.Site(**{**values, **changes})


def argv(where: plan.Site, *args: str, env: dict[str, str] | None = None, passed_on: tuple[str, ...] = ()) -> list[str]:
    """mpirun's own arguments, up to the rank's shell."""
    launch = plan.plan(where, "/mpi/bin/mpirun", args, ["prog"], env or {}, passed_on, "/work")
    (process,) = launch.processes
    assert process.argv[0] == "/mpi/bin/mpirun" and process.argv[-2:] == ("rank", "prog")
    return list(process.argv[1 : process.argv.index("sh")])


# ---------------------------------------------------------------- flavours


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to ...", OPEN_MPI_4, "Open MPI 4.1.4"),
        ("mpirun (Open MPI) 5.0.11\n", OPEN_MPI_5, "Open MPI 5.0.11"),
        ("mpirun (OpenRTE) 3.1.6\n", OPEN_MPI_4, "Open MPI 3.1.6"),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", MPICH, "MPICH 5.0.2"),
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005 (id: 74c4a23)\n",
            INTEL,
            "Intel MPI 2021.11",
        ),
    ],
)
def test_an_mpi_is_known_by_its_answer(answer: str, kind: str, text: str) -> None:
    read = flavour.read_version(answer, "/some/bin")
    assert read is not None and (read.kind, str(read)) == (kind, text)


def test_what_is_no_mpi_is_not_taken_for_one(tmp_path: Path) -> None:
    assert flavour.read_version("mpirun: a script of mine, version 3\n", "/some/bin") is None
    own = tmp_path / "mpirun"
    own.write_text("#!/bin/sh\necho hello\n")
    own.chmod(0o755)
    with pytest.raises(ToolMissing, match=r"is not an MPI that @mpi knows .* It says: 'hello"):
        flavour.find_mpi({"PATH": str(tmp_path)})


def test_the_path_decides_which_mpi_it_is(tmp_path: Path) -> None:
    for name, version in (("a", "(Open MPI) 4.0.0"), ("b", "(Open MPI) 5.0.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mpirun").write_text(f"#!/bin/sh\necho 'mpirun {version}'\n")
        (tmp_path / name / "mpirun").chmod(0o755)
    assert flavour.find_mpi({"PATH": f"{tmp_path}/b:{tmp_path}/a"}).kind == OPEN_MPI_5
    assert flavour.find_mpi({"PATH": f"{tmp_path}/a:{tmp_path}/b"}).kind == OPEN_MPI_4


def test_no_mpi_is_told_with_what_to_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolMissing, match=r"no mpirun on the PATH.*pip install mpich mpi4py"):
        flavour.find_mpi({"PATH": str(tmp_path)})


def test_mpi4py_is_told_the_library_beside_mpirun(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmpi.so.12").touch()
    assert Flavour(MPICH, "5", str(tmp_path / "bin")).library == str(tmp_path / "lib" / "libmpi.so.12")
    assert Flavour(OPEN_MPI_4, "4", str(tmp_path / "bin")).library == "libmpi.so.40", "the system's loader finds it"


# ---------------------------------------------------------------- mpirun's arguments


def test_open_mpi_4() -> None:
    assert argv(site()) == [
        *("--hostfile", "/private/hostfile", "--leave-session-attached"),
        *("--mca", "plm_rsh_agent", "/private/rsh:sh", "--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "oob_tcp_if_include", "eth0", "--mca", "btl_tcp_if_include", "eth0"),
        *("-n", "4"),
    ]


def test_open_mpi_5() -> None:
    assert argv(site(OPEN_MPI_5)) == [
        *("--hostfile", "/private/hostfile", "--leave-session-attached"),
        *("--prtemca", "plm_ssh_agent", "/private/rsh:sh", "--prtemca", "plm_ssh_no_tree_spawn", "1"),
        *("--prtemca", "prte_if_include", "eth0", "--mca", "btl_tcp_if_include", "eth0"),
        *("-n", "4"),
    ]


def test_mpich() -> None:
    launcher = ("-launcher", "ssh", "-launcher-exec", "/private/rsh", "-iface", "eth0")
    assert argv(site(MPICH)) == ["-f", "/private/hostfile", *launcher, "-genvnone", "-n", "4"]


def test_intel_mpi() -> None:
    launcher = ("-bootstrap", "ssh", "-bootstrap-exec", "/private/rsh", "-iface", "eth0")
    assert argv(site(INTEL)) == ["-machinefile", "/private/hostfile", *launcher, "-genvnone", "-n", "4"]


def test_root_is_allowed_where_open_mpi_would_refuse() -> None:
    assert argv(site(is_root=True))[0] == "--allow-run-as-root"
    assert argv(site(is_root=True), "--allow-run-as-root").count("--allow-run-as-root") == 1
    assert "--allow-run-as-root" not in argv(site(MPICH, is_root=True))


@pytest.mark.parametrize("kind", [OPEN_MPI_4, OPEN_MPI_5, MPICH])
def test_on_one_machine_nothing_has_to_be_reached(kind: str) -> None:
    said = " ".join(argv(site(kind, rsh="", interface="")))
    assert not re.search("agent|launcher|iface|if_include|attached", said)


def test_more_slots_than_processors_bind_to_none_and_yield() -> None:
    said = argv(site(crowded=True))
    assert "--bind-to none --mca mpi_yield_when_idle 1" in " ".join(said)
    assert "--bind-to" not in argv(site())


@pytest.mark.parametrize(
    ("kind", "allowed"), [(OPEN_MPI_4, "--oversubscribe"), (OPEN_MPI_5, "--map-by :OVERSUBSCRIBE"), (MPICH, "")]
)
def test_more_ranks_than_slots_are_the_users_will(kind: str, allowed: str) -> None:
    said = " ".join(argv(site(kind), "-np", "5"))
    assert allowed in said and said.endswith("-np 5")
    assert not re.search("oversubscribe", " ".join(argv(site(kind), "-np", "4")), re.IGNORECASE)


@pytest.mark.parametrize(
    ("kind", "args", "env", "ours"),
    [
        (OPEN_MPI_4, ["--hostfile", "mine"], {}, "/private/hostfile"),
        (OPEN_MPI_4, ["-H", "a,b"], {}, "/private/hostfile"),
        (OPEN_MPI_4, ["--mca", "btl_tcp_if_include", "ib0"], {}, "btl_tcp_if_include eth0"),
        (OPEN_MPI_4, [], {"OMPI_MCA_btl_tcp_if_include": "ib0"}, "btl_tcp_if_include"),
        (OPEN_MPI_4, [], {"OMPI_MCA_btl_tcp_if_exclude": "lo"}, "btl_tcp_if_include"),
        (OPEN_MPI_4, ["--bind-to", "core"], {}, "--bind-to none"),
        (OPEN_MPI_4, ["-np", "2"], {}, "-n 4"),
        (OPEN_MPI_4, ["--map-by", "ppr:1:node"], {}, "-n 4"),
        (OPEN_MPI_4, ["-N", "1"], {}, "-n 4"),
        (OPEN_MPI_5, [], {"PRTE_MCA_prte_if_include": "ib0"}, "prte_if_include"),
        (MPICH, ["-f", "mine"], {}, "/private/hostfile"),
        (MPICH, ["-iface", "ib0"], {}, "-iface eth0"),
        (MPICH, [], {"HYDRA_IFACE": "ib0"}, "-iface"),
        (MPICH, ["-launcher", "slurm"], {}, "/private/rsh"),
        (MPICH, ["-genvall"], {}, "-genvnone"),
        (MPICH, ["-ppn", "1"], {}, "-n 4"),
    ],
)
def test_what_the_user_says_is_not_said_again(kind: str, args: list[str], env: dict[str, str], ours: str) -> None:
    assert ours in " ".join(argv(site(kind, crowded=True))), "it is said where the user does not"
    said = " ".join(argv(site(kind, crowded=True), *args, env=env))
    assert ours not in said and " ".join(args) in said


def test_variables_for_all_ranks() -> None:
    env = {"SEED": "1", "A": "b"}
    assert "-x SEED -x A" in " ".join(argv(site(), env=env, passed_on=("SEED", "A", "REMOVED")))
    assert "-genvlist SEED,A" in " ".join(argv(site(MPICH), env=env, passed_on=("SEED", "A", "REMOVED")))


def test_a_task_that_is_itself_a_rank_starts_another_world() -> None:
    inherited = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1",
        "OMPI_MCA_ess": "env",
        "PMIX_NAMESPACE": "1",
        "PMIX_SERVER_URI41": "x",
        "PRTE_LAUNCHED": "1",
        "PMI_RANK": "0",
        "PMI_FD": "7",
        "HYDI_CONTROL_FD": "9",
        "MPI_LOCALNRANKS": "2",
    }
    users = {
        "OMPI_MCA_btl": "tcp,self",
        "PMIX_MCA_gds": "hash",
        "PRTE_MCA_rmaps": "seq",
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "PATH": "/bin",
    }
    assert plan.clean_environment({**inherited, **users}) == users


@pytest.mark.parametrize(
    ("interfaces", "addresses", "said"),
    [
        (["eth0", "eth0"], ["10.0.0.1", "10.0.0.2"], "eth0"),
        (["eth0", "ens5"], ["10.0.0.1", "10.0.0.2"], "10.0.0.0/30"),
        (["eth0", "ens5"], ["10.0.0.1", "10.0.1.2"], "10.0.0.0/23"),
        ([None, None], ["10.0.0.1", "192.168.0.1"], ""),
        (["eth0", "ens5"], ["fd00::1", "fd00::2"], "fd00::/126"),
        (["eth0", "ens5"], ["fd00::1", "10.0.0.2"], ""),
    ],
)
def test_the_interface_is_what_all_nodes_understand(
    interfaces: list[str | None], addresses: list[str], said: str
) -> None:
    assert plan.common_interface(interfaces, addresses) == said


# ---------------------------------------------------------------- programs


def under_mpi(*words: str) -> list[str]:
    return program.under_mpi(words, has_mpi4py=lambda python: python != "/old/bin/python3")


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["python", "a.py", "x"], [sys.executable, "-m", "mpi4py", program.RANK_SCRIPT, "a.py", "x"]),
        (["python3", "-u", "a.py"], [sys.executable, "-u", "-m", "mpi4py", program.RANK_SCRIPT, "a.py"]),
        (
            ["python", "-W", "error", "-X", "dev", "a.py"],
            [sys.executable, "-W", "error", "-X", "dev", "-m", "mpi4py", program.RANK_SCRIPT, "a.py"],
        ),
        (
            ["python", "-Werror", "-OO", "-c", "print()"],
            [sys.executable, "-Werror", "-OO", "-m", "mpi4py", "-c", "print()"],
        ),
        (["python", "-m", "train", "x"], [sys.executable, "-m", "mpi4py", program.RANK_SCRIPT, "-m", "train", "x"]),
        (["python", "-m", "mpi4py", "a.py"], [sys.executable, "-m", "mpi4py", program.RANK_SCRIPT, "a.py"]),
        (["python", "-m", "mpi4py.bench", "helloworld"], [sys.executable, "-m", "mpi4py.bench", "helloworld"]),
        (["/opt/x/bin/python3.11", "a.py"], ["/opt/x/bin/python3.11", "-m", "mpi4py", program.RANK_SCRIPT, "a.py"]),
        (["/old/bin/python3", "a.py"], ["/old/bin/python3", program.RANK_SCRIPT, "a.py"]),
        (["python", "--version"], [sys.executable, "--version"]),
        (["./python-like", "a.py"], ["./python-like", "a.py"]),
        (["pythonista", "a.py"], ["pythonista", "a.py"]),
    ],
)
def test_python_runs_so_that_an_exception_aborts_the_world(words: list[str], run: list[str]) -> None:
    assert under_mpi(*words) == run


def test_programs_and_arguments_in_all_their_forms(tmp_path: Path) -> None:
    hostile = "a'; echo foo"
    assert program.program_argv("python 'my script.py' -v", None) == ["python", "my script.py", "-v"]
    assert program.program_argv(["./a b", hostile], [3, 0.5, tmp_path]) == [
        "./a b",
        hostile,
        "3",
        "0.5",
        str(tmp_path),
    ]
    assert program.program_argv(tmp_path / "a b", "x 'y z'") == [str(tmp_path / "a b"), "x", "y z"]
    assert program.program_argv("p", {"epochs": 3, "v": None}) == ["p", "--epochs", "3", "-v"]
    assert program.to_argv({"n": 4, "map-by": "node"}, "args") == ["-n", "4", "--map-by", "node"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "program is needed"),
        ("", "program is needed"),
        ({"python": "a.py"}, "program is a command such as"),
        (5, "program is a command such as"),
        ({"true"}, "program is a command such as"),
        ("python 'a.py", "program: No closing quotation"),
        ([None], "program: Item 0 of the arguments is None"),
    ],
)
def test_a_program_that_cannot_be_meant(given: Any, said: str) -> None:
    with pytest.raises(BadAttribute, match=said):
        program.program_argv(given, None)


# ---------------------------------------------------------------- a rank's end


def end_of(*argv: str) -> tuple[int, str]:
    """How a rank ends, and what is told."""
    env = {"PATH": "/usr/bin:/bin", "PMI_RANK": "3", "METAFLOW_GANG_ID": "f00.1"}
    done = subprocess.run(rank.reported(argv), env=env, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr


def test_a_rank_that_ends_well_tells_nothing() -> None:
    assert end_of("sh", "-c", "exit 0") == (0, "")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", "7"), ("exit 255", "255"), ("kill -9 $$", "-9"), ("kill -11 $$", "-11")]
)
def test_a_rank_that_fails_tells_its_number_and_end(script: str, code: str) -> None:
    exit_code, told = end_of("sh", "-c", script)
    found = re.search(REPORT, told)
    assert found and (found["rank"], found["node"], found["exit_code"]) == ("3", "1", code)
    assert exit_code == -9, "which every mpirun takes for a failure"


def test_a_rank_that_must_not_end_too_early_for_its_mpirun() -> None:
    began = time.monotonic()
    argv = rank.reported(["sh", "-c", "echo $$"], outlives_start=True)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and time.monotonic() - began >= 0.05
    argv = rank.reported(["sh", "-c", "exit 7"], outlives_start=True)
    assert "ended with 7\n" in subprocess.run(argv, capture_output=True, text=True, timeout=20).stderr


def test_arguments_of_a_rank_pass_as_they_are(tmp_path: Path) -> None:
    hostile = ["a'; echo foo", "$HOME `id`", "two\nlines", "", "*"]
    show = "import sys; print(ascii(sys.argv[1:]))"
    done = subprocess.run(
        rank.reported([sys.executable, "-c", show, *hostile]), capture_output=True, text=True, timeout=20
    )
    assert done.stdout == ascii(hostile) + "\n"


def told_of(lines: str) -> Report | None:
    reports = Reports(re.compile(REPORT.encode()))
    reports.stream().write(lines.encode())
    return chosen(reports.seen(), lambda report: False)


def test_a_killed_rank_counts_before_one_that_lost_it() -> None:
    lines = "[gang] rank 0 (node 0) ended with 14\nKilled\n[gang] rank 2 (node 1) ended with -9\n"
    found = told_of(lines)
    assert found and (found.rank, found.node, found.exit_code) == (2, 1, -9)
    found = told_of(lines.replace("-9", "3"))
    assert found and found.rank == 0


# ---------------------------------------------------------------- transports


def test_auto_takes_ssh_where_every_node_has_it() -> None:
    assert choose_transport("auto", [[], []], "mpi") == "ssh"
    assert choose_transport("auto", [[], ["sshd"]], "mpi") == "channel"
    assert choose_transport("channel", [[], []], "mpi") == "channel"
    with pytest.raises(ToolMissing, match=r'transport="ssh"\): node 1 has no ssh, sshd\.'):
        choose_transport("ssh", [[], ["ssh", "sshd"]], "mpi")


def test_nodes_with_different_mpis_are_named() -> None:
    ours, theirs = {"kind": MPICH, "mpi": "MPICH 5"}, {"kind": OPEN_MPI_4, "mpi": "Open MPI 4.1"}
    decorator.check_same_mpi([ours, ours])
    with pytest.raises(ToolMissing, match=r"Node 0 has MPICH 5 and node 2 has Open MPI 4\.1"):
        decorator.check_same_mpi([ours, ours, theirs])


# ---------------------------------------------------------------- batch systems


@pytest.mark.parametrize("job", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE"])
def test_in_a_batch_systems_job_the_nodes_are_the_gangs(job: str) -> None:
    in_job = {job: "1"}
    assert "--mca ras ^slurm," in " ".join(argv(site(), env=in_job)) and "ras" not in argv(site())
    assert "--prtemca plm ^slurm," in " ".join(argv(site(OPEN_MPI_5, rsh=""), env=in_job))
    assert argv(site(), "--mca", "ras", "slurm", env=in_job).count("ras") == 1, "the user's own"
    alone = {"rsh": "", "interface": ""}
    assert "-launcher fork" in " ".join(argv(site(MPICH, **alone), env=in_job))
    assert "-bootstrap fork" in " ".join(argv(site(INTEL, **alone), env=in_job))
    assert "-launcher" not in argv(site(MPICH, **alone)), "there is no job"
    assert "-launcher" not in argv(site(MPICH, **alone), env={**in_job, "HYDRA_LAUNCHER": "slurm"})


# ---------------------------------------------------------------- the user's own hostfile, and the older package's


def test_our_own_hostfile_is_no_other(tmp_path: Path) -> None:
    ours = tmp_path / "hostfile"
    ours.touch()
    here = site(hostfile=str(ours))
    for args in (["--hostfile", str(ours)], [f"-machinefile={ours}"], ["--hostfile", "/metaflow/hostfile.txt"]):
        assert plan.own_arguments(here, ["-n", "9", *args])[0] == ["-n", "9"]
    (note,) = plan.own_arguments(here, ["--hostfile", "hostfile.txt"])[1]
    assert note == f"hostfile.txt is not written any more: mpirun gets this gang's own, {ours}."
    (tmp_path / "hostfile.txt").touch()
    for path in (tmp_path / "hostfile.txt", tmp_path / "mine"):
        assert plan.own_arguments(here, ["--hostfile", str(path)]) == (["--hostfile", str(path)], [])


def test_options_of_open_mpi_that_hydra_does_not_know() -> None:
    args = ["-n", "4", "--allow-run-as-root", "--oversubscribe"]
    assert plan.own_arguments(site(), args) == (args, [])
    kept, notes = plan.own_arguments(site(MPICH), args)
    assert kept == ["-n", "4"] and len(notes) == 2


@pytest.mark.parametrize(
    "text",
    ["p < in", "p <in", "p > out", "p 2>&1", "p | sort", "a && b", "a; b", "p &", "p $(date)", "p `date`", "p \\\\<in"],
)
def test_what_only_a_shell_understands_is_refused(text: str) -> None:
    with pytest.raises(BadAttribute, match=r"outside of quotes.*No shell runs it"):
        program.program_argv(text, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p '<' \"|\"", ["p", "<", "|"]),
        ("p \\< \"a && b\" '$(x)'", ["p", "<", "a && b", "$(x)"]),
        ("p $HOME 50% #1 a=b", ["p", "$HOME", "50%", "#1", "a=b"]),
    ],
)
def test_what_is_in_quotes_passes(text: str, words: list[str]) -> None:
    assert program.program_argv(text, None) == words
