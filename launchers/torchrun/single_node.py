"""torchrun on this machine alone, in a plain step: no gang, no guard."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from ...core.devices import cpu_count, gpu_count
from ...core.failure import ProcessFailed
from ...core.functions import load_return, read_returns, remove_call
from ...core.guard import processes
from ...core.guard.verdict import last_traceback
from .entrypoint import read_entrypoint
from .failure import TorchrunException, explain
from .launcher import network_variables
from .options import Options, check_nodes, choose_nproc, read_options
from .plan import verbatim

_TAIL_BYTES = 64 << 10
# The agent ends its ranks itself when it is asked to end; what is left after this many seconds is killed.
_GRACE_S = 2.0
# What these say is where and how the agent meets others.
_MEETING = frozenset(("standalone", "master_port", "master_addr", "rdzv_endpoint", "rdzv_backend", "rdzv_id", "nnodes"))


class TorchrunSingleNodeMultiGPU:
    """torchrun over this machine's GPUs in a step without ``num_parallel``.

    Example
    -------
    ``TorchrunSingleNodeMultiGPU().run(entrypoint="train.py", entrypoint_args={"epochs": 3})``
    """

    def run(
        self,
        torchrun_args: Mapping[str, Any] | Sequence[Any] | None = None,
        entrypoint: str | os.PathLike[str] | Callable[..., Any] | None = None,
        entrypoint_args: Mapping[str, Any] | Sequence[Any] | None = None,
        nproc_per_node: int | str | None = None,
    ) -> list[Any] | None:
        """Runs ``entrypoint`` in every rank of this machine, under torchrun's agent.

        Parameters
        ----------
        torchrun_args, entrypoint, entrypoint_args, nproc_per_node
            As in ``current.torch.run``.

        Returns
        -------
        list or None
            What the ranks returned, in their order, where ``entrypoint`` is a function.

        Raises
        ------
        BadAttribute
            An argument that cannot be meant. Nothing was started.
        TorchrunException
            A rank failed. A function's own exception is raised as it is.
        """
        options = read_options(torchrun_args)
        check_nodes(options, 0, 1)
        nproc = choose_nproc(nproc_per_node, options, None, gpu_count(), cpu_count())
        with tempfile.TemporaryDirectory(prefix="metaflow-gang-torchrun-") as folder:
            what = read_entrypoint(entrypoint, entrypoint_args, options.values, folder, number_lines=True)
            argv = single_node_argv(options, nproc, os.path.join(folder, "agent"), what.target, what.arguments)
            error_file = os.path.join(folder, "error.json")
            environ = {
                **os.environ,
                **network_variables("127.0.0.1", os.environ),
                "TORCHELASTIC_ERROR_FILE": error_file,
            }
            exit_code, tail = run_and_end(argv, environ)
            if exit_code != 0:
                record = {
                    "title": "torchrun",
                    "rank": None,
                    "exit_code": exit_code,
                    "tail": tail,
                    "traceback": last_traceback(tail),
                    "error_file": error_file,
                }
                error = explain(ProcessFailed(record), what.name, "this machine", by_agent=True)
                raise error from error.__cause__
            if what.call is None:
                return None
            returns = read_returns(what.call)
            remove_call(what.call)
            if len(returns) != nproc:
                raise TorchrunException(
                    f"{what.name} returned in {len(returns)} of {nproc} ranks: the others ended their process without "
                    "returning, as os._exit() does."
                )
            return [load_return(value) for value in returns.values()]


def single_node_argv(options: Options, nproc: int, log_dir: str, target: str, arguments: tuple[str, ...]) -> list[str]:
    """The command; torchrun meets on a port of its own choice where the options say nothing of it."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(nproc)]
    if not _MEETING & set(options.values):
        argv += ["--standalone"]
        if "local_addr" not in options.values:
            # Otherwise the ranks look for rank 0 under this machine's name, which need not have an address.
            argv += ["--local_addr", "127.0.0.1"]
    for name in ("nnodes", "master_addr", "master_port", "node_rank"):
        if options.values.get(name) is not None:
            argv += [f"--{name}", str(options.values[name])]
    if "log_dir" not in options.values:
        argv += ["--log_dir", log_dir]
    return [*argv, *options.agent_argv(), *(verbatim(text) for text in (target, *arguments))]


def run_and_end(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Runs a command in a session of its own, passes its output on, and ends everything that it started.

    Returns
    -------
    (int, str)
        Exit code as in :mod:`subprocess`, and the end of its output.
    """
    marker = uuid.uuid4().hex
    process = subprocess.Popen(
        argv,
        env={**environ, processes.LAUNCH_MARKER: marker},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    tail = _Tail()
    pumps = [
        threading.Thread(target=_pump, args=(source, target, tail), daemon=True)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        if source is not None
    ]
    for pump in pumps:
        pump.start()
    try:
        exit_code = process.wait()
    finally:
        _end(process, marker)
        for pump in pumps:
            pump.join()
    return exit_code, tail.text()


def _end(process: subprocess.Popen[bytes], marker: str) -> None:
    """Ends the agent, then whatever of its descendants is left, in sessions of their own too."""
    if process.poll() is None:
        processes.terminate([process.pid])
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    deadline = time.monotonic() + _GRACE_S
    while left := processes.marked(processes.LAUNCH_MARKER, marker):
        # A killed process may have just started another: look again until there is none.
        processes.send(left, 9)
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    process.wait()


class _Tail:
    """The last output of both streams, as it came."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._lock = threading.Lock()

    def add(self, chunk: bytes) -> None:
        with self._lock:
            self._bytes += chunk
            del self._bytes[:-_TAIL_BYTES]

    def text(self) -> str:
        return self._bytes.decode("utf-8", "replace")


def _pump(source: IO[bytes], target: Any, tail: _Tail) -> None:
    """Passes bytes on as they come, to the very end; a target that is no longer there does not stop the child."""
    binary = getattr(target, "buffer", None)
    with source:
        while chunk := os.read(source.fileno(), 1 << 16):
            tail.add(chunk)
            try:
                if binary is not None:
                    binary.write(chunk)
                else:
                    # A notebook's stream takes text only.
                    target.write(chunk.decode("utf-8", "replace"))
                target.flush()
            except (OSError, ValueError):
                continue
