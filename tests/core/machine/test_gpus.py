"""Processors and GPUs of this machine, and how local nodes share the GPUs."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.machine.gpus import TooFewGpus, cpu_count, gpu_count, share_gpus, visible_gpus

HAS_GPUS = bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/proc/driver/nvidia/gpus/*"))
UUID = "GPU-8a56f4bc-8184-4d46-9d1a-000000000001"
MIG = "MIG-8a56f4bc-8184-4d46-9d1a-000000000002"
OLD_MIG = f"MIG-{UUID}/1/0"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("0,1,2", ("0", "1", "2")),
        (" 3 , 1 ", ("3", "1")),
        ("", ()),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
        (f"{UUID},{MIG}", (UUID, MIG)),
        (OLD_MIG, (OLD_MIG,)),
        ("0,,1", ("0",)),
        ("0,0", ()),
        ("1; rm", ()),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(chosen: str, expected: tuple[str, ...]) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible_gpus(environment) == expected
    assert gpu_count(environment) == len(expected)


def test_the_task_s_own_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert visible_gpus() == ("5", "6")


def fake_smi(folder: Path, body: str) -> dict[str, str]:
    """An environment in which nvidia-smi is a script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.skipif(HAS_GPUS, reason="this machine's own GPUs are counted first")
def test_without_device_files_nvidia_smi_is_asked(tmp_path: Path) -> None:
    listing = f"echo 'GPU 0: H200 (UUID: {UUID})'; echo '  MIG 1g.5gb Device 0: ({MIG})'; echo 'GPU 1: H200 (UUID: x)'"
    assert visible_gpus(fake_smi(tmp_path, f'test "$1" = -L && {{ {listing}; }}')) == ("0", "1")
    assert visible_gpus(fake_smi(tmp_path, "echo 'No devices were found'")) == ()
    assert visible_gpus(fake_smi(tmp_path, "echo 'GPU 0: broken'; exit 9")) == ()
    assert visible_gpus({"PATH": str(tmp_path / "nowhere")}) == ()


@pytest.mark.skipif(not HAS_GPUS, reason="no GPU here")
def test_the_gpus_of_this_machine_are_numbered() -> None:
    found = visible_gpus({"PATH": os.environ["PATH"]})
    assert found == tuple(str(number) for number in range(len(found)))
    assert found


FOUR = ("0", "1", "2", "3")


def test_gpus_are_divided_evenly() -> None:
    shares = share_gpus(FOUR, 2, None)
    assert shares.values == ("0,1", "2,3")
    assert shares.gpus == (2, 2)
    assert shares.notice == ""


def test_what_the_user_chose_is_divided() -> None:
    assert share_gpus(("7", UUID), 2, None).values == ("7", UUID)


def test_a_rest_stays_unused_and_is_told() -> None:
    shares = share_gpus(FOUR, 3, None)
    assert shares.values == ("0", "1", "2")
    assert shares.notice == "The 3 local nodes get 1 GPU each; 1 of 4 stay unused."


def test_each_node_gets_what_it_asked_for() -> None:
    shares = share_gpus(FOUR, 3, 1)
    assert (shares.values, shares.gpus, shares.notice) == (("0", "1", "2"), (1, 1, 1), "")
    assert share_gpus(FOUR, 1, 2).values == ("0,1",)
    assert share_gpus(FOUR, 2, 0).values == ("", "")


def test_asking_for_more_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(
        TooFewGpus,
        match=r"^2 nodes .* 3 GPUs each, 6 in all, but it has 4 \(CUDA_VISIBLE_DEVICES=0,1,2,3\).* at most 2 ",
    ):
        share_gpus(FOUR, 2, 3)
    assert issubclass(TooFewGpus, ValueError)


def test_fewer_gpus_than_nodes_is_no_gpu_for_anyone() -> None:
    shares = share_gpus(("0",), 2, None)
    assert shares.values == ("", "")
    assert shares.gpus == (0, 0)
    assert "1 GPU for 2 local nodes" in shares.notice
    assert "NCCL refuses two ranks on one GPU" in shares.notice
    assert "num_parallel=1" in shares.notice


def test_a_machine_without_gpus_is_left_as_it_is() -> None:
    assert share_gpus((), 2, None) == share_gpus((), 2, 0)
    assert share_gpus((), 2, None).values == (None, None)
    assert share_gpus((), 2, None).notice == ""
    asked = share_gpus((), 2, 8)
    assert asked.values == (None, None)
    assert asked.notice == (
        "Each node asks for 8 GPUs, but programs on this machine see none: the local nodes run without."
    )


def test_a_single_node_keeps_all() -> None:
    shares = share_gpus(FOUR, 1, None)
    assert shares.values == (None,)
    assert shares.gpus == (4,)


COUNT = (
    "import sys, metaflow; from metaflow_extensions.gang.core.machine.gpus import cpu_count; "
    "print(cpu_count(*sys.argv[1:]))"
)


def test_affinity_limits_the_processors() -> None:
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, {{{one}}}); {COUNT}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=True)
    assert int(run.stdout) == 1
    assert 1 <= cpu_count() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("given", "expected"), [("6", 6), ("65", 64), ("", 64), ("4(x2)", 64), ("0", 1)])
def test_a_slurm_job_has_the_processors_that_it_was_given(
    many_processors: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, expected: int
) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert cpu_count(str(tmp_path / "nothing")) == expected


@pytest.fixture
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a quota of several processors shows on a small machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def proc_folder(folder: Path, cgroup: str, mounts: str) -> str:
    (folder / "proc").mkdir()
    (folder / "proc/cgroup").write_text(cgroup)
    (folder / "proc/mountinfo").write_text(mounts)
    return str(folder / "proc")


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(content + "\n")


@pytest.mark.usefixtures("many_processors")
@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("max 100000", "250000 100000", 2),
        ("300000 100000", "max 100000", 3),
        ("300000 100000", "800000 100000", 3),
        ("max 100000", "50000 100000", 1),
        ("max 100000", "max 100000", 64),
    ],
)
def test_quotas_of_version_2_all_the_way_up(tmp_path: Path, outer: str, inner: str, expected: int) -> None:
    mount = tmp_path / "sys fs"
    group(mount / "pod", cpu_max=outer)
    group(mount / "pod/container", cpu_max=inner)
    escaped = str(mount).replace(" ", "\\040")
    mounts = f"30 23 0:26 / {escaped} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert cpu_count(proc_folder(tmp_path, "0::/pod/container\n", mounts)) == expected


@pytest.mark.usefixtures("many_processors")
@pytest.mark.parametrize(
    ("root", "own"), [("/", "/pod"), ("/docker/1", "/docker/1/pod"), ("/docker/1/pod", "/docker/1")]
)
def test_quotas_of_version_1(tmp_path: Path, root: str, own: str) -> None:
    mount = tmp_path / "cpu"
    for place in (mount, mount / "pod"):
        group(place, cpu_cfs_quota_us="400000", cpu_cfs_period_us="100000")
    mounts = (
        f"35 31 0:30 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"36 31 0:31 {root} {mount} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    )
    assert cpu_count(proc_folder(tmp_path, f"5:memory:/x\n4:cpu,cpuacct:{own}\n0::/\n", mounts)) == 4


@pytest.mark.usefixtures("many_processors")
def test_no_quota_and_no_control_groups_at_all(tmp_path: Path) -> None:
    mount = tmp_path / "cpu"
    group(mount, cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    mounts = f"36 31 0:31 / {mount} rw,relatime - cgroup cgroup rw,cpu\n"
    assert cpu_count(proc_folder(tmp_path, "4:cpu:/\n", mounts)) == 64
    assert cpu_count(str(tmp_path / "nothing")) == 64
