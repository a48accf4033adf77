"""``metaflow-gang doctor``: all checks in their order, as a table or as JSON, and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from ..command import refuse, version
from . import machine, metaflow_setup, network, software
from .findings import BROKEN, MISSING, OK, Finding, looked_for, rows
from .smoke import SMOKE, smoke_test
from .smoke_flows import SMOKES

GROUPS: tuple[tuple[str, tuple[Callable[[], list[Finding]], ...]], ...] = (
    (software.SOFTWARE, (software.python, software.packages, software.ssh)),
    (software.LAUNCHERS, (software.gang, software.frameworks, software.mpi)),
    (
        machine.MACHINE,
        (machine.processors, machine.gpus, machine.shared_memory, machine.limits, machine.temporary_files),
    ),
    (network.NETWORK, (network.addresses, network.adapters, network.variables)),
    (metaflow_setup.METAFLOW, (metaflow_setup.services,)),
    (metaflow_setup.BACKENDS, (metaflow_setup.slurm,)),
)

LAUNCHERS = tuple(smoke.launcher.lstrip("@") for smoke in SMOKES)


def doctor(launchers: Sequence[str], with_smoke: bool, as_json: bool) -> int:
    """Look for everything, and print it.

    Parameters
    ----------
    launchers : sequence of str
        Only these are looked for and tested; all where it is empty. "torchrun" and "@torchrun" are the same.
    with_smoke : bool
        Whether a flow of two nodes is run for each launcher that is there.
    as_json : bool

    Returns
    -------
    int
        0 where all that is there works, 1 where something is broken, or a launcher that was named is missing.
    """
    named = {name.lstrip("@") for name in launchers}
    unknown = named - set(LAUNCHERS)
    if unknown:
        return refuse(f"There is no launcher {', '.join(sorted(unknown))}: it is one of {', '.join(LAUNCHERS)}.")

    def is_wanted(finding: Finding) -> bool:
        return finding.group != software.LAUNCHERS or not named or finding.name.lstrip("@") in named

    found: list[Finding] = []
    for group, checks in GROUPS:
        found += filter(is_wanted, looked_for(group, checks))
    if not as_json:
        _show(found)
    if with_smoke:
        found += _smoke(found, as_json)
    # Of what is missing only a launcher that was named is a fault.
    faults = [
        finding
        for finding in found
        if finding.state == BROKEN or (named and finding.group == software.LAUNCHERS and finding.state == MISSING)
    ]
    is_well = not faults
    if as_json:
        data = {"version": version(), "ok": is_well, "findings": [finding.as_data() for finding in found]}
        print(json.dumps(data, indent=2))
    else:
        _conclude(faults)
    return 0 if is_well else 1


def _smoke(found: list[Finding], is_quiet: bool) -> list[Finding]:
    there = [finding.name for finding in found if finding.group == software.LAUNCHERS and finding.state == OK]
    if not is_quiet:
        print(f"\n{SMOKE} (--no-smoke leaves it out)", flush=True)

    def report(finding: Finding) -> None:
        if not is_quiet:
            print(rows(finding), flush=True)
            if finding.output:
                print("\n".join(f"    | {line}" for line in finding.output.splitlines()), flush=True)

    return smoke_test(there, report)


def _show(found: list[Finding]) -> None:
    groups = list(dict.fromkeys(finding.group for finding in found))
    for number, group in enumerate(groups):
        print(("\n" if number else "") + group)
        for finding in found:
            if finding.group == group:
                print(rows(finding))
    sys.stdout.flush()


def _conclude(faults: list[Finding]) -> None:
    told = list(dict.fromkeys(f"{finding.name} is {finding.state}" for finding in faults))
    print(f"\n{', '.join(told)}." if told else "\nNothing is broken.")
