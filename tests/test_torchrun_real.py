"""Real ranks: what they see under us and under torchrun's agent, and torchrun on a single node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.core.failure import BadAttribute
from metaflow_extensions.gang.core.guard.ports import lease_port
from metaflow_extensions.gang.core.guard.processes import marked
from metaflow_extensions.gang.launchers.torchrun import single_node
from metaflow_extensions.gang.launchers.torchrun.failure import TorchrunException
from metaflow_extensions.gang.launchers.torchrun.options import read_options
from metaflow_extensions.gang.launchers.torchrun.plan import Job, plan
from metaflow_extensions.gang.launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU

pytest.importorskip("torch")

DEADLINE_S = 120

SEES = """
import json, os, sys
path = os.path.join(sys.argv[1], os.environ["RANK"] + ".json")
with open(path, "w") as file:
    json.dump({"env": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(), "flags": sys.flags.no_user_site}, file)
"""

# May differ: where errors are written, and who holds the store. The rest of torch's contract must not.
DIFFERS = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}


@pytest.fixture
def port() -> Iterator[int]:
    lease = lease_port("127.0.0.1")
    yield lease.port
    lease.release()


def seen_under(launcher: str, port: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What each rank of 2 nodes, one with two ranks and one with one, saw."""
    script, output = folder / "sees.py", folder / launcher
    script.write_text(SEES)
    output.mkdir()
    environ = {**os.environ, "RANK": "stale", "OMP_NUM_THREADS": "1"}
    plans = [
        plan(
            Job(
                entrypoint=str(script),
                arguments=(str(output), "a b", "$x", "--flag=é"),
                options=read_options(None),
                nprocs=(2, 1),
                node_index=node,
                main_address="127.0.0.1",
                port=port,
                port_is_ours=True,
                launcher=launcher,
                environ=environ,
                folder=str(folder),
                key=launcher,
            )
        )
        for node in range(2)
    ]
    children = [
        subprocess.Popen(process.argv, env=dict(process.env), cwd=folder)
        for made in plans
        for process in made.processes
    ]
    try:
        assert [child.wait(DEADLINE_S) for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return {path.stem: json.loads(path.read_text()) for path in sorted(output.iterdir())}


def test_ranks_see_the_same_under_us_and_under_the_agent(port: int, tmp_path: Path) -> None:
    ours, agents = seen_under("direct", port, tmp_path), seen_under("torchrun", port, tmp_path)
    assert list(ours) == list(agents) == ["0", "1", "2"]
    for rank in ours:
        mine, its = ours[rank], agents[rank]
        assert {**mine, "env": None, "argv": mine["argv"][2:]} == {**its, "env": None, "argv": its["argv"][2:]}
        names = set(mine["env"]) | set(its["env"])
        different = {name for name in names if mine["env"].get(name) != its["env"].get(name)}
        assert different == DIFFERS
        assert (mine["env"]["TORCHELASTIC_USE_AGENT_STORE"], its["env"]["TORCHELASTIC_USE_AGENT_STORE"]) == (
            "False",
            "True",
        )


ADDS = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
sys.stdout.write(f"total {total.item()} {sys.argv[1:]}\\n")
if "--fail" in sys.argv and dist.get_rank() == 1:
    raise ValueError("loss is nan")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_single_nodes_at_once(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    script = tmp_path / "adds.py"
    script.write_text(ADDS)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            TorchrunSingleNodeMultiGPU().run(
                entrypoint=str(script), entrypoint_args={"name": "é $HOME"}, nproc_per_node=2
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert errors == []
    assert capfdbinary.readouterr().out.decode().count("total 3.0 ['--name', 'é $HOME']") == 4


def test_a_failed_rank_of_a_single_node_is_told(tmp_path: Path) -> None:
    script = tmp_path / "adds.py"
    script.write_text(ADDS)
    with pytest.raises(TorchrunException) as caught:
        TorchrunSingleNodeMultiGPU().run({"max-restarts": 0}, str(script), ["--fail"], 2)
    message = str(caught.value)
    assert "on this machine, running" in message
    assert "rank 1 on this machine" in message and "ValueError: loss is nan" in message


FUNCTIONS = """
import os
def add(a, b=0):
    return [int(os.environ["RANK"]), a + b]
def fail(rank):
    if int(os.environ["RANK"]) == rank:
        raise KeyError("no such sample")
    import time
    time.sleep(60)
"""


def test_functions_on_a_single_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gang_test_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import gang_test_functions  # type: ignore[import-not-found]

    run = TorchrunSingleNodeMultiGPU().run
    assert run(entrypoint=gang_test_functions.add, entrypoint_args={"a": 2, "b": 3}, nproc_per_node=2) == [
        [0, 5],
        [1, 5],
    ]
    with pytest.raises(KeyError, match="no such sample") as caught:
        run(entrypoint=gang_test_functions.fail, entrypoint_args=[1], nproc_per_node=2)
    assert "In rank 1 on this machine" in str(caught.value.__cause__)
    with pytest.raises(BadAttribute, match="entrypoint_args do not fit"):
        run(entrypoint=gang_test_functions.fail)


def test_what_a_single_node_started_is_gone_when_the_step_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    # A session of its own inside a session of its own, deaf to SIGTERM, as a rank that hangs in a collective.
    inner = f"import signal, time; signal.signal(15, 1); open({str(ready)!r}, 'w').write('x'); time.sleep(600)"
    outer = (
        "import signal, subprocess, sys, time; signal.signal(15, 1);"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True); time.sleep(600)"
    )
    monkeypatch.setattr(single_node, "_GRACE_S", 0.2)
    started: list[set[int]] = []

    def interrupt() -> None:
        with open(ready) as file:
            file.read(1)
        started.append(marked("GANG_TEST", str(tmp_path)))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        single_node.run_and_end([sys.executable, "-c", outer], {**os.environ, "GANG_TEST": str(tmp_path)})
    assert [len(pids) for pids in started] == [2]
    assert marked("GANG_TEST", str(tmp_path)) == set()


def test_output_passes_whole_and_the_tail_is_its_end(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    program = (
        "import os\n"
        "for i in range(20000): os.write(2, b'%06d ' % i + b'x' * 92 + b'\\n')\n"
        "os.write(1, b'\\xc3'); os.write(1, b'\\xa9' + b'y' * 100_000)\n"
    )
    exit_code, tail = single_node.run_and_end([sys.executable, "-c", program], os.environ)
    captured = capfdbinary.readouterr()
    assert exit_code == 0
    assert captured.err == b"".join(b"%06d " % i + b"x" * 92 + b"\n" for i in range(20000))
    assert captured.out == "é".encode() + b"y" * 100_000
    assert len(tail) <= 65536
