"""Runs a Python script or module in a rank of mpirun: ``python [-m mpi4py] rank_script.py SCRIPT ARGUMENT...``, or
``... rank_script.py -m MODULE ARGUMENT...``.

As Python itself would run it, and its exception is written down besides, where ``core/ranks/rank_main.py`` writes that
of other launchers' ranks. The process ends as Python ends it: MPI is finalized there, and mpi4py ends the world where
the script has raised. Standard library only; nothing of this package is imported by its name.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader


def main(path: str, arguments: list[str]) -> int:
    """Run the script at ``path``, or the module after "-m"; 0, or 1 where it raised."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.realpath(here):
        del sys.path[0]  # this file's neighbours would hide modules of the user
    if path != "-m" and not os.path.isfile(path):
        import runpy

        sys.argv[:] = [path, *arguments]
        runpy.run_path(path, run_name="__main__")  # a folder or an archive with a __main__.py
        return 0
    child = os.path.join(here, os.pardir, os.pardir, "core", "ranks", "rank_main.py")
    loader = SourceFileLoader("metaflow_gang_rank_child", os.path.abspath(child))
    spec = spec_from_loader(loader.name, loader)
    module = module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[loader.name] = module
    loader.exec_module(module)
    if path == "-m":
        return int(module.run_module(arguments[0], arguments[1:]))
    return int(module.run_script(path, arguments))


if __name__ == "__main__":
    failed = main(sys.argv[1], sys.argv[2:])
    if failed:
        sys.exit(failed)
