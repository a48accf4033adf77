"""The command line of ``metaflow-gang``. Only its commands import Metaflow, so that ``--help`` is there at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .command import NAME, refuse, version

PATHSPEC = "Flow/run, Flow/run/step or Flow/run/step/task; of a Flow alone its latest run"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command, and end the process with its exit code."""
    arguments = parser().parse_args(argv)
    try:
        load_metaflow()
        code = arguments.command(arguments)
        sys.stdout.flush()
    except ImportError as error:
        if error.name != "metaflow":
            raise
        code = refuse(str(error).removeprefix(f"{NAME} "))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `metaflow-gang logs ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def load_metaflow() -> None:
    """Import Metaflow before anything else of this package: it imports the decorators, which would be half there.

    Raises
    ------
    ImportError
        There is no Metaflow; the message is a sentence.
    """
    from .. import core  # noqa: F401, I001 - says what is missing
    from metaflow import current  # noqa: F401


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        NAME, description="Distributed steps for Metaflow: what a machine lacks for them, and why a gang failed."
    )
    top.add_argument("--version", action="version", version=f"{NAME} {version()}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_doctor(commands)
    _add_why(commands)
    _add_logs(commands)
    _add_traces(commands)
    _add_stubs(commands)
    return top


def _add_doctor(commands: Any) -> None:
    def command(arguments: argparse.Namespace) -> int:
        from .doctor.doctor import doctor

        return doctor(arguments.launcher, arguments.smoke, arguments.json)

    about = "what each launcher needs and has on this machine, and a test of two nodes with each"
    added = commands.add_parser("doctor", help=about, description=f"{about[0].upper()}{about[1:]}.")
    added.add_argument("--launcher", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    added.add_argument("--no-smoke", dest="smoke", action="store_false", help="look only, and start no flow")
    added.add_argument("--json", action="store_true", help="for programs")
    added.set_defaults(command=command)


def _of_a_run(
    commands: Any, name: str, help: str, command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    added.add_argument("pathspec", metavar="PATHSPEC", help=PATHSPEC)
    added.add_argument(
        "--metadata",
        metavar="KIND@WHERE",
        help="where the run is known, as local@FOLDER or service@URL; by default as Metaflow is configured",
    )
    added.set_defaults(command=command)
    return added


def _add_why(commands: Any) -> None:
    def command(arguments: argparse.Namespace) -> int:
        from .why import why

        return why(arguments.pathspec, arguments.metadata, arguments.json)

    added = _of_a_run(commands, "why", "the first failure of each gang of a run, and how far it had come", command)
    added.add_argument("--json", action="store_true", help="for programs")


def _add_logs(commands: Any) -> None:
    def command(arguments: argparse.Namespace) -> int:
        from .logs import LogOptions, show

        options = LogOptions(arguments.rank, arguments.node, arguments.attempt, arguments.follow)
        return show(arguments.pathspec, arguments.metadata, options)

    added = _of_a_run(commands, "logs", "the logs of all nodes of a gang, merged in the order of time", command)
    added.add_argument("--rank", type=int, metavar="N", help="only the lines of this rank")
    added.add_argument("--node", type=int, metavar="N", help="only the lines of this node")
    added.add_argument("--attempt", type=int, metavar="N", help="by default the latest; the first is 0")
    added.add_argument(
        "--follow", "-f", action="store_true", help="go on until the attempt is over; looks for new lines every 2 s"
    )


def _add_traces(commands: Any) -> None:
    def command(arguments: argparse.Namespace) -> int:
        from .traces import traces

        return traces(arguments.pathspec, arguments.metadata, arguments.attempt, arguments.to)

    added = _of_a_run(commands, "traces", "the traces of torch's profiler that the ranks of a gang have left", command)
    added.add_argument("--to", metavar="FOLDER", help="fetch them into FOLDER/node-0/ and so on; without it, list them")
    added.add_argument("--attempt", type=int, metavar="N", help="by default the latest; the first is 0")


def _add_stubs(commands: Any) -> None:
    def command(arguments: argparse.Namespace) -> int:
        from .stubs import stubs

        return stubs()

    about = "adds the types of this package to metaflow-stubs, for editors and type checkers"
    commands.add_parser("stubs", help=about, description=f"{about[0].upper()}{about[1:]}.").set_defaults(
        command=command
    )
