"""The program of a rank's process: it calls a function, or runs a script or module as Python itself would.

Started as a script, ``python -u rank_main.py CALL``, ``python -u rank_main.py --script SCRIPT ARGUMENT...`` or
``python -u rank_main.py --module MODULE ARGUMENT...``, where CALL is a file of :mod:`functions`. With
``--paused MODULES FD`` it imports MODULES, and waits to be told which of these it is. It starts fast:
standard library only, and nothing of this package but ``rank_errors.py`` and two files of ``guard``. What it adds to
Python is a record of the code's end: an exception, or the code or text of ``sys.exit()``, is written to the error file
before any file or socket of the process is closed. The process ends as Python ends one: threads are awaited, exit
handlers run, objects are finalized and open files are flushed and closed.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] + "/"):
    # The script's own folder comes first on the path, where its neighbours would hide modules of the user.
    del sys.path[0]

import atexit
import builtins
import contextlib
import faulthandler
import importlib.util
import json
import os
import pickle
import signal
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..guard import tracebacks
    from ..guard.stalls import stack_file
    from . import rank_errors
else:

    def _load(name, *path):
        """By its path: the user's modules come before, and after, whatever this package has."""
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), *path)
        spec = importlib.util.spec_from_file_location(f"metaflow_gang_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    rank_errors = _load("rank_errors", "rank_errors.py")
    stack_file = _load("stack_file", os.pardir, "guard", "stalls", "stack_file.py")
    tracebacks = _load("tracebacks", os.pardir, "guard", "tracebacks.py")
rank_errors.OWN_FILES.add(__file__)
rank_errors.shortened = tracebacks.shortened

_RANK_PID = os.getpid()
"""Of the rank itself; what a process that it forks returns is not the rank's."""


def _show_stacks_when_asked() -> None:
    """Have the guard's signal write this rank's stacks."""
    stack_file.register(stack_file.rank_folder(), rank_errors.rank_name())


def main(path: str) -> int:
    """Make the call in the file ``path``; return 0, or 1 where it raised."""
    with contextlib.suppress(Exception):
        faulthandler.enable(all_threads=True)
    _show_stacks_when_asked()
    with open(path, "rb") as file:
        call = pickle.load(file)
    prefix = f"[rank{rank_errors.rank()}]: " if call["number_lines"] else ""
    try:
        sys.path[:] = call["sys_path"]
        sys.argv[:] = [call["main_file"] or path]
        if call["main_file"]:
            _import_main(call["main_file"], call["main_package"])
        modules = f"A module of {call['name']}() or of its arguments"
        function, args, kwargs = _without_an_exit(modules, pickle.loads, call["body"])
        name = call["name"]
        del call
        try:
            value = function(*args, **kwargs)
        except SystemExit as end:
            if end.code not in (None, 0):
                rank_errors.record_exit(end)
                raise
            # It ended the process as done: there is nothing to return.
            value = None
        if os.getpid() == _RANK_PID:
            _leave(path, rank_errors.dump_return(name, value))
        return 0
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        rank_errors.record_interrupt(error)
        rank_errors.show_error(error, prefix)
        rank_errors.show_no_more()
        raise
    except BaseException as error:
        rank_errors.print_error(error, prefix)
        rank_errors.record_error(error)
        return 1


def run_script(path: str, arguments: list[str]) -> int:
    """Run a file as ``python SCRIPT ARGUMENT...`` does; return 0, or 1 where it raised."""
    if not os.path.isfile(path):
        # A folder or an archive with a __main__.py; Python finds its way in.
        os.execv(sys.executable, [sys.executable, "-u", path, *arguments])
    _show_stacks_when_asked()
    full = os.path.abspath(path)
    sys.argv[:] = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    module = ModuleType("__main__")
    module.__dict__.update(__file__=full, __builtins__=builtins, __loader__=SourceFileLoader("__main__", full))
    module.__dict__.update(__cached__=None, __annotations__={})

    def code() -> Any:
        with open(full, "rb") as file:
            return compile(file.read(), full, "exec", dont_inherit=True)

    return _run_main(module, code)


def run_module(name: str, arguments: list[str]) -> int:
    """Run a module as ``python -m MODULE ARGUMENT...`` does; return 0, or 1 where it raised."""
    _show_stacks_when_asked()
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["-m", *arguments]
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins)

    def code() -> Any:
        spec = _module_spec(name)
        module.__dict__.update(
            __file__=spec.origin, __cached__=spec.cached, __loader__=spec.loader, __package__=spec.parent, __spec__=spec
        )
        sys.argv[0] = spec.origin
        return spec.loader.get_code(spec.name)

    return _run_main(module, code)


def _module_spec(name: str) -> Any:
    """The spec of module ``name``, or of a package's ``__main__``. Raises SystemExit where there is none."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if not isinstance(error, ModuleNotFoundError) or not f"{name}.".startswith(f"{error.name}."):
            raise  # of a package's own code
        spec = None
    if spec is None or not hasattr(spec.loader, "get_code"):
        sys.exit(f"{sys.executable}: No module named {name}")
    return spec


def _run_main(module: ModuleType, code: Callable[[], Any]) -> int:
    """Run ``code()`` as the program of this process; return 0, or 1 where it raised."""
    sys.modules["__main__"] = module
    try:
        exec(code(), module.__dict__)
    except SystemExit as end:
        rank_errors.record_exit(end)
        raise
    except BaseException as error:
        prefix = f"[rank{rank_errors.rank()}]: " if rank_errors.NUMBERED in os.environ else ""
        # torch's @record may have been here first
        if not isinstance(error, KeyboardInterrupt):
            rank_errors.record_error(error, {"pickle": None}, replace=False)
            rank_errors.show_error(error, prefix)
            return 1
        rank_errors.record_interrupt(error)
        rank_errors.show_error(error, prefix)
        rank_errors.show_no_more()
        raise
    return 0


def wait_for_a_job(modules: str, ready: int) -> list[str]:
    """Import ``modules``, which may write nothing, and wait on stdin for what this rank is to be; its arguments.

    Parameters
    ----------
    modules : str
        With commas between them.
    ready : int
        A descriptor that is closed when they are imported.
    """
    streams = {fd: os.dup(fd) for fd in (1, 2)}
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in streams:
        os.dup2(nothing, fd)
    for module in modules.split(","):
        with contextlib.suppress(Exception):  # the rank itself raises it again, where it needs the module
            importlib.import_module(module)
    for fd, own in streams.items():
        os.dup2(own, fd)
        os.close(own)
    os.close(ready)
    text = b"".join(iter(lambda: os.read(0, 1 << 20), b""))
    if not text:
        os._exit(0)  # it is not needed
    os.dup2(nothing, 0)
    os.close(nothing)
    job = json.loads(text)
    os.environ.clear()
    os.environ.update(job["env"])
    return list(job["arguments"])


def _mark_the_end() -> None:
    """Leave a file that says that this rank's code has ended with code 0, for the guard that gave it its error file.

    Ranks that still need this one print errors about it from now on; finalizing the interpreter may take longer.
    """
    path = os.environ.get(rank_errors.RECORD)
    if not path and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        # The agent's error files may be in a folder of the user.
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and os.getpid() == _RANK_PID:
        with contextlib.suppress(OSError):
            open(f"{path}.ended", "w").close()


def _finish_in_spite_of_sigterm() -> None:
    """Let the interpreter's finalization flush and close open files although the gang is being stopped.

    The rank is done or has failed by itself, and SIGTERM would only lose the data that its files still buffer. The
    guard's SIGKILL, after the grace, ends one that does not finish. A handler of the user stays. Ours is a function and
    not SIG_IGN, which programs that exit handlers start would inherit.
    """
    with contextlib.suppress(ValueError):  # not the main thread, in a process that a thread forked
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda number, frame: None)


def _import_main(path: str, package: str | None) -> None:
    """Run the flow file under another name, so that its ``if __name__ == "__main__"`` does not start the flow.

    ``multiprocessing`` does the same for its children, with the same name. Pickled names of ``__main__`` are found.
    """
    module = ModuleType("__mp_main__")
    module.__file__ = path
    module.__package__ = package
    # Known by both names before it runs: dataclasses look up their module while they are made, and multiprocessing,
    # when it is first imported, registers whatever is __main__ under the other name.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    _without_an_exit(path, exec, code, module.__dict__)


def _without_an_exit(what: str, load: Callable[..., Any], *arguments: Any) -> Any:
    """What ``load(*arguments)`` gives. Raises RuntimeError where it ends the interpreter: nothing would be called."""
    try:
        return load(*arguments)
    except SystemExit as end:
        raise RuntimeError(
            f"{what} ended the interpreter (exit code {end.code}) while it was imported for a function of it. Put what "
            'starts the flow under `if __name__ == "__main__":`.'
        ) from end


def _leave(path: str, value: bytes) -> None:
    """Write the value to a file beside the call, named after the rank, whole or not at all."""
    target = f"{path}.return.{rank_errors.rank()}"
    partial = f"{target}.{os.getpid()}"
    with open(partial, "wb") as file:
        file.write(value)
    os.replace(partial, target)


if __name__ == "__main__":
    if sys.argv[1] == "--paused":
        sys.argv[1:] = wait_for_a_job(sys.argv[2], int(sys.argv[3]))
    try:
        run = {"--script": run_script, "--module": run_module}.get(sys.argv[1])
        ended = run(sys.argv[2], sys.argv[3:]) if run is not None else main(sys.argv[1])
        if not ended:
            _mark_the_end()
    except SystemExit as end:
        if not end.code:
            _mark_the_end()
        raise
    finally:
        # Registered last, so it runs before the other exit handlers, once the threads have ended.
        atexit.register(_finish_in_spite_of_sigterm)
    sys.exit(ended)
