"""A server of the guard that runs out of threads or open files says so, and goes on once there are some again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

END_S = 60.0

PROGRAM = """
import contextlib, os, resource, socket, sys, threading, time
import metaflow
from metaflow_extensions.gang.core.guard import bulk
from metaflow_extensions.gang.core.guard.limits import Complaint

folder, path = sys.argv[1:]
secret = os.urandom(32)
os.makedirs(folder)
server = bulk.BulkServer("127.0.0.1", secret, folder)
said = []
with open(path, "wb") as file:
    file.write(b"x" * 1000)

def works(name):
    bulk.put("127.0.0.1", server.port, secret, name, path)
    bulk.get("127.0.0.1", server.port, secret, name, path)
    assert open(path, "rb").read() == b"x" * 1000

def short_of(limit, value):
    server.complain = Complaint(said.append, "node 0", f"{server.port}, for large values")
    before = resource.getrlimit(limit)
    sock = socket.socket()
    resource.setrlimit(limit, (value, before[1]))
    try:
        sock.connect(("127.0.0.1", server.port))
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        resource.setrlimit(limit, before)
        sock.close()
    print(said.pop(), flush=True)
    assert not said

works("before")
short_of(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")))
works("after files")
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
threading.stack_size(1 << 28)  # none that was used before will do
short_of(resource.RLIMIT_AS, size + (1 << 25))
threading.stack_size(0)
works("after threads")
server.close()
print("well")
"""


def test_a_server_goes_on_after_it_has_run_out_of_files_and_of_threads(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "served"), str(tmp_path / "file")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 0, done.stdout + done.stderr
    files, threads, well = done.stdout.splitlines()
    assert files.startswith("The guard of node 0 has no open file left (the limit is "), files
    assert threads.startswith("The guard of node 0 has no thread left (can't start new thread"), threads
    assert ", for large values. Whoever connects waits until that is over." in threads
    assert well == "well" and not done.stderr, done.stderr
