"""Runs in a new child before its program: makes the settings that only the child itself can make, then execs.

``python -I -S exec.py PARENT_PID CWD DELAY OPEN_FILES PROGRAM ARG...``. The kernel then kills the child when the
guard dies. A preexec function could do the same, but runs Python between fork and exec of a process with threads.

It runs before each process, so it imports the modules under ``signal`` and ``ctypes``, which take as long as all the
rest of it.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # this file starts with each process: no import that can be spared
    from typing import NoReturn


def main() -> None:
    parent, cwd, delay, open_files = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    argv = sys.argv[5:]
    # Python, or the guard, ignores these for itself, and what is ignored stays so across exec.
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_DFL)
    try:
        import _ctypes

        pr_set_pdeathsig = 1
        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        _ctypes.call_cdeclfunction(prctl, (pr_set_pdeathsig, int(_signal.SIGKILL), 0, 0, 0))
    except (ImportError, OSError, AttributeError):
        pass  # only the backstop is missing: the guard ends its descendants itself
    if os.getppid() != parent:
        sys.exit(1)  # the guard died before the signal was set
    if open_files:
        import resource

        # The guard has raised its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if delay:
        time.sleep(delay)
    try:
        if cwd:
            os.chdir(cwd)
    except OSError as error:
        refuse(f"the folder {cwd!r} cannot be its working folder: {error.strerror}", 126)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        refuse(f"{argv[0]!r} could not be started: {error.strerror}", code)


def refuse(why: str, code: int) -> "NoReturn":
    """End as a shell does when it cannot start a program, with the reason on stderr."""
    print(f"[gang] {why}.", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
