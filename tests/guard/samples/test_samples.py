"""Samples of a node against real processes, files in the form of the kernel's, and an NVML that is compiled here."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.guard.coordinator.messages import HEADER_BYTES, Checker
from metaflow_extensions.gang.core.guard.loop.framing import Nonsense, encode
from metaflow_extensions.gang.core.guard.rank_reports.tail import LINE_LIMIT, Tail
from metaflow_extensions.gang.core.guard.samples import nvml, ranks
from metaflow_extensions.gang.core.guard.samples.amd import Amd
from metaflow_extensions.gang.core.guard.samples.container import Container
from metaflow_extensions.gang.core.guard.samples.gpus import GpuReader, found_gpus
from metaflow_extensions.gang.core.guard.samples.ring import Ring
from metaflow_extensions.gang.core.guard.samples.sampler import Sampler, every, send_every


class Rank:
    """A process as a launch has it."""

    alive = True

    def __init__(self, pid: int, rank: int | None = 0) -> None:
        self.pid, self.rank, self.title = pid, rank, f"rank {rank}"

    def last_line(self) -> tuple[str, float]:
        return "epoch 3", 5.0


@pytest.fixture
def python() -> Iterator[Callable[[str], int]]:
    """Starts a program that prints a line when it is ready, and waits for its stdin's end."""
    with ExitStack() as stack:

        def start(code: str) -> int:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            return process.pid

        yield start


def waits(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_busy_rank_a_child_s_work_and_memory_are_seen(python: Callable[[str], int]) -> None:
    busy = python("print('ready')\nwhile True: pass")
    idle = python("print('ready'); input()")
    large = python("held = bytearray(200 << 20); print('ready'); input()")
    parent = python("import os\nif os.fork():\n print('ready'); input()\nwhile os.getppid() > 1: pass")

    def cpu_s(pid: int) -> float:
        return float(ranks.sample([Rank(pid)])[0]["cpu_s"])

    for pid in (busy, parent):
        before = cpu_s(pid)
        waits(lambda pid=pid, before=before: cpu_s(pid) > before + 0.1)  # type: ignore[misc]
    found = {record["rank"]: record for record in ranks.sample([Rank(busy, 0), Rank(idle, 1), Rank(large, 2)])}
    assert found[0]["state"] == "R" and found[1]["state"] == "S"
    assert found[0]["cpu_s"] > found[1]["cpu_s"]
    assert found[2]["rss"] - found[1]["rss"] >= 190 << 20
    assert (found[1]["title"], found[1]["line"], found[1]["line_at"]) == ("rank 1", "epoch 3", 5.0)


def test_a_rank_that_is_gone_has_no_sample(python: Callable[[str], int]) -> None:
    gone = Rank(python("print('ready'); input()"))
    gone.alive = False
    assert ranks.sample([gone]) == []


def test_the_machine_s_use_is_seen(python: Callable[[str], int], tmp_path: Path) -> None:
    container = Container()
    begun = time.monotonic()
    python("print('ready')\nwhile True: pass")
    waits(lambda: time.monotonic() - begun > 1.0)
    sample = container.sample()
    assert sample["cpu"] >= 0.2, "other tests run beside it"
    assert 0 < sample["memory"] <= sample["limit"]
    assert {"rx", "tx", "read", "written"} <= sample.keys()


def kernel(root: Path, files: dict[str, str]) -> tuple[str, str]:
    """Files below a /proc and control groups of one's own."""
    for name, text in {
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n",
        "proc/stat": "cpu 100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n",
        "proc/net/dev": "Inter-| Receive\n face |bytes\n lo: 9 0 0 0 0 0 0 0 9\n eth0: 1000 1 0 0 0 0 0 0 500 1\n",
        "proc/diskstats": "8 0 sda 1 0 10 1 1 0 20 1\n8 1 sda1 1 0 10 1 1 0 20 1\n259 0 nvme0n1 1 0 4 1 1 0 6 1\n",
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root / "proc"), str(root / "groups")


V2 = {
    "proc/self/cgroup": "0::/pod/me\n",
    "groups/pod/me/memory.current": "3000000\n",
    "groups/pod/me/memory.max": "5000000\n",
    "groups/pod/me/memory.stat": "anon 1\ninactive_file 1000000\n",
    "groups/pod/me/cpu.stat": "usage_usec 2000000\nuser_usec 1\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
    "groups/memory/memory.usage_in_bytes": "3000000\n",  # the namespace's own, as in a container
    "groups/memory/memory.limit_in_bytes": "5000000\n",
    "groups/memory/memory.stat": "cache 5\ntotal_inactive_file 1000000\n",
    "groups/cpu,cpuacct/cpuacct.usage": "2000000000\n",
}


@pytest.mark.parametrize(
    ("files", "usage", "later"),
    [(V2, "groups/pod/me/cpu.stat", "usage_usec 3000000\n"), (V1, "groups/cpu,cpuacct/cpuacct.usage", "3000000000\n")],
    ids=["version 2", "version 1"],
)
def test_a_container_s_limit_and_rates(tmp_path: Path, files: dict[str, str], usage: str, later: str) -> None:
    places = kernel(tmp_path, files)
    container = Container(*places)
    assert container.memory() == (2_000_000, 5_000_000)
    (tmp_path / usage).write_text(later)
    (tmp_path / "proc/net/dev").write_text("a\nb\n lo: 9 0 0 0 0 0 0 0 9\n eth0: 51000 1 0 0 0 0 0 0 500 1\n")
    container._last = (time.monotonic() - 2.0, *container._last[1:])
    sample = container.sample()
    assert 0.4 < sample["cpu"] <= 0.5 and 23_000 < sample["rx"] <= 25_000 and sample["tx"] == 0.0
    assert container._last[4:] == ((10 + 4) * 512, (20 + 6) * 512), "parts of disks are not counted twice"


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_without_a_limit_the_machine_s_memory_counts(tmp_path: Path, limit: str) -> None:
    container = Container(*kernel(tmp_path, {**V2, "groups/pod/me/memory.max": limit}))
    assert container.memory() == (2_000_000 * 1024, 8_000_000 * 1024)


FAKE_NVML = """
typedef struct { unsigned gpu, memory; } U;
typedef struct { unsigned long long total, free, used; } M;
typedef struct { void *device; unsigned long long type, data; unsigned instance, compute; } E;
static int cards[2], told;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = &cards[i]; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, U *u) { u->gpu = d == &cards[1] ? 97 : 3; u->memory = 41; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, M *m) { m->total = 85899345920ULL; m->used = 8589934592ULL; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 312500; return d == &cards[1] ? 0 : 3; }
int nvmlDeviceGetTotalEccErrors(void *d, int type, int kind, unsigned long long *n)
    { *n = type == 1 && kind == 0 ? 2 : 99; return 0; }
int nvmlEventSetCreate(void **s) { *s = &told; return 0; }
int nvmlDeviceRegisterEvents(void *d, unsigned long long types, void *s) { return types == 8 && s == &told ? 0 : 2; }
int nvmlEventSetWait_v2(void *s, E *e, unsigned ms)
    { if (told++) return 10; e->device = &cards[1]; e->type = 8; e->data = 79; return 0; }
"""


def test_gpus_by_a_library_with_nvml_s_functions(tmp_path: Path) -> None:
    """No GPU is needed: what is shown is that ctypes gives and takes what nvml.h says. It was not run on a real one."""
    (tmp_path / "nvml.c").write_text(FAKE_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, timeout=60)
    reader = GpuReader(lambda: nvml.Nvml(str(library)))
    waits(lambda: len(reader.latest()) == 2)
    memory = {"memory_util": 41, "memory": 8 << 30, "total": 80 << 30, "ecc": 2}
    assert reader.latest() == [
        {"util": 3, "power": None, "xid": None, **memory},
        {"util": 97, "power": 312.5, "xid": 79, **memory},
    ]
    reader.close()
    with pytest.raises(OSError, match="no-such"):
        nvml.Nvml(str(tmp_path / "no-such.so"))


def test_without_a_gpu_nothing_is_loaded() -> None:
    if nvml.is_there() or Amd().folders:
        pytest.skip("this machine has a GPU")
    assert found_gpus() is None


def test_amd_gpus_by_their_files(tmp_path: Path) -> None:
    device = tmp_path / "card1/device"
    (device / "hwmon/hwmon3").mkdir(parents=True)
    (device / "ras").mkdir()
    for name, text in {
        "gpu_busy_percent": "88\n",
        "mem_info_vram_used": "1024\n",
        "mem_info_vram_total": "4096\n",
        "hwmon/hwmon3/power1_average": "150500000\n",
        "ras/umc_err_count": "ue: 1\nce: 7\n",
    }.items():
        (device / name).write_text(text)
    expected = {"util": 88, "memory": 1024, "total": 4096, "power": 150.5, "ecc": 1, "xid": None}
    assert Amd(str(tmp_path)).sample() == [expected]


def test_a_ring_keeps_all_that_is_new_and_thins_what_is_old() -> None:
    ring = Ring(16)
    for at in range(1000):
        ring.add({"at": at})
    times = [sample["at"] for sample in ring.samples]
    assert len(times) <= 16 and times == sorted(times) and times[-6:] == list(range(994, 1000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] > gaps[-1] == 1


def test_samples_are_slower_the_older_the_gang_and_the_more_nodes_it_has() -> None:
    assert [every(age) for age in (0, 600, 3600, 1e6)] == [2.0, 2.0, 12.0, 30.0]
    assert [send_every(*gang) for gang in ((2, 8), (100, 8), (1024, 0), (1024, 8))] == [2.0, 2.0, 10.24, 20.48]


class Timers:
    """What is to be called later, called by hand."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def fire(self) -> None:
        self.waiting.pop(0)()


def test_nothing_is_sent_until_it_is_asked_for(python: Callable[[str], int]) -> None:
    timers, sent = Timers(), list[dict[str, Any]]()
    rank = Rank(python("print('ready'); input()"))
    sampler = Sampler(timers, "/nonexistent", lambda: [rank] * 100, sent.append)  # type: ignore[arg-type]
    sampler.start()
    for _ in range(2):
        timers.fire()
    assert len(sampler.ring.samples) == 2 and not sent
    sampler.send_to_node_0(2)
    timers.fire()
    (message,) = sent
    assert message["op"] == "sample" and len(message["sample"]["ranks"]) == ranks.MOST_RANKS
    assert len(encode(message)) < HEADER_BYTES / 4
    Checker(2).check(message, b"")


@pytest.mark.parametrize(
    "sample",
    [
        None,
        [],
        {"gpus": {}},
        {"log": {}},
        {"log": [["loss", "0", 1.0]]},
        {"ranks": [1]},
        {"ranks": [{"line": "x" * 301}]},
        {"cpu": [1]},
        {"gpus": [{}] * 65},
    ],
)
def test_samples_that_are_none_are_refused(sample: Any) -> None:
    with pytest.raises(Nonsense):
        Checker(2).check({"op": "sample", "sample": sample}, b"")


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ([b"one\ntwo\n\n"], "two"),
        ([b"one\nhalf"], "half"),
        ([b" 10%\r 20%\r"], "20%"),
        ([b"x" * 5000], "x" * LINE_LIMIT),
        ([], ""),
    ],
)
def test_the_last_line_of_a_process(written: list[bytes], line: str) -> None:
    tail, before = Tail(), time.time()
    stream = tail.stream()
    for data in written:
        stream.write(data)
    found, at = tail.last_line()
    assert found == line and (before <= at <= time.time() if written else at == 0.0)
