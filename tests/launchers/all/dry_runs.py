"""What a dry run shows, read from a run's output, and compared with what ranks have seen."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECRET = "never-to-be-seen"

SEEN = """
import json, os
names = ("RANK", "HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
rank = next(os.environ[name] for name in names if name in os.environ)
with open("/proc/self/cmdline") as file:
    argv = file.read().split("\\0")[:-1]
with open("/proc/self/environ") as file:
    environ = dict(pair.split("=", 1) for pair in file.read().split("\\0") if pair)
with open(f"rank-{rank}.part", "w") as file:
    json.dump({"argv": argv, "environ": environ, "node": int(os.environ["METAFLOW_GANG_ID"].rpartition(".")[2])}, file)
os.rename(f"rank-{rank}.part", f"rank-{rank}.json")
"""


@dataclass
class Command:
    """One command that a dry run shows."""

    node: int
    title: str
    argv: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    file: str = ""

    def environ_of(self, title: str) -> dict[str, str]:
        return {**self.environ, **self.own.get(title, {})}


def words(text: str) -> list[str]:
    """The words of a command line; none of those in this file begins with a dollar sign but the quoted ones."""
    found = shlex.split(text)
    return [word[1:].encode().decode("unicode_escape") if word.startswith("$") else word for word in found]


def assignments(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(text))


def shown(output: str) -> list[Command]:
    """The commands of the first dry run in a run's output."""
    found: list[Command] = []
    node = -1
    dry = output[output.index("[gang] Dry run of ") + 1 :].partition("[gang] Dry run of ")[0]
    for line in re.findall(r"(?<!\[node \d\] )\[gang\] (.*)", dry):
        if match := re.fullmatch(r"node (\d+) \(.*\)", line):
            node = int(match[1])
        elif match := re.fullmatch(r"    environment of (.+?): ?(.*)", line):
            found[-1].own[match[1]] = assignments(match[2])
        elif match := re.fullmatch(r"    (argv|environment|without): ?(.*)", line):
            value: Any = {"argv": words, "environment": assignments, "without": str.split}[match[1]](match[2])
            setattr(found[-1], match[1].replace("environment", "environ"), value)
        elif line.startswith("    | "):
            found[-1].file += line[6:] + "\n"
        elif line.startswith("  ") and not line.startswith("   "):
            found.append(Command(node, line[2:]))
    return found


def ranks(folder: Path) -> dict[int, dict[str, Any]]:
    """What the ranks of the second call have seen, which worked in ``folder``."""
    files = {int(path.stem.partition("-")[2]): path for path in folder.glob("rank-*.json")}
    return {rank: json.loads(files[rank].read_text()) for rank in sorted(files)}


def alike(text: str) -> str:
    """A value without what is different in two calls that follow each other: ports, and the number of the call."""
    return re.sub(r"\b(2\d{4}|3[01]\d{3})\b", "PORT", re.sub(r"(deepspeed|run)-\d+", r"\1-N", text)).replace(
        SECRET, "***"
    )


def compare(
    task: Mapping[str, str], command: Command, title: str, rank: dict[str, Any], set_by_others: str = r"(?!)"
) -> None:
    """The command line and the environment of one rank are those that were shown.

    ``task`` is the environment of its node's body; ``set_by_others`` matches names of variables that the program adds
    that starts the ranks.
    """
    got = [alike(word) for word in rank["argv"]]
    assert [alike(word) for word in command.argv][-len(got) :] == got
    environ = {name: alike(value) for name, value in rank["environ"].items() if task.get(name) != value}
    # The guard says which launch a process is of; the rank's wrappers, that its output is numbered.
    others = rf"METAFLOW_GANG_LAUNCH|METAFLOW_GANG_NUMBERED|{set_by_others}"
    own = {name: value for name, value in environ.items() if not re.fullmatch(others, name)}
    expected = {name: alike(value) for name, value in command.environ_of(title).items()}
    assert own == {name: value for name, value in expected.items() if not re.fullmatch(others, name)}
    assert not [name for name in command.without if name in rank["environ"] and not re.fullmatch(others, name)]
