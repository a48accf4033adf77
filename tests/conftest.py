"""What every test runs with: Metaflow in folders of this session's own, and proof that nothing is left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from support.flows import flow_run as flow_run
from support.leaks import no_leaks

_FOLDER = tempfile.mkdtemp(prefix="gang-tests-")


def _isolate() -> None:
    """Take this session's Metaflow away from the user's; before the first ``import metaflow``, which reads it all."""
    for name in [name for name in os.environ if name.startswith(("METAFLOW_", "MF_"))]:
        del os.environ[name]
    os.environ.update(
        METAFLOW_HOME=os.path.join(_FOLDER, "home"),
        METAFLOW_DATASTORE_SYSROOT_LOCAL=os.path.join(_FOLDER, "datastore"),
        METAFLOW_CLIENT_CACHE_PATH=os.path.join(_FOLDER, "client"),
        METAFLOW_DEFAULT_DATASTORE="local",
        METAFLOW_DEFAULT_METADATA="local",
        METAFLOW_USER="tester",
        # Two sessions on one machine must not see each other's gangs as leaks.
        TMPDIR=os.path.join(_FOLDER, "tmp"),
    )
    for name in ("home", "datastore", "client", "tmp"):
        os.makedirs(os.path.join(_FOLDER, name))
    tempfile.tempdir = None


def _own_mounts() -> None:
    """Give a worker of pytest-xdist shared memory and named network namespaces of its own.

    Tests that run at the same time must not see each other's as leaks. Root only: for others they stay shared.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or os.geteuid() != 0:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS; os.unshare is of Python 3.12
        raise OSError(ctypes.get_errno(), "unshare: no mount namespace for this worker")
    os.makedirs("/run/netns", exist_ok=True)
    for command in (
        ("mount", "--make-rprivate", "/"),
        ("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"),
        ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run/netns"),
    ):
        subprocess.run(command, check=True)


def _default_signals() -> None:
    """Take back what nohup, and a shell for a command in the background, have ignored: what the tests start would
    inherit that, and outlive the signal that is to end it.
    """
    actions = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, action in actions.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


_isolate()
_own_mounts()
_default_signals()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail each test that leaves a process, thread, port, file, shared memory, namespace or mount."""
    with no_leaks():
        yield


def pytest_unconfigure() -> None:
    """The session's folder goes with the session."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
