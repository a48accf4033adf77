"""The image of a task's container: a Python with the framework, without Metaflow and without this package."""

from __future__ import annotations

import json
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOR_S3 = ("boto3", "requests")
"""What Metaflow itself installs in each task's container where the flow's datastore is S3."""

_BARRED = ("metaflow", "metaflow-gang")

_BESIDE_A_TASK = ["spot_termination_monitor"]
"""Of what Metaflow starts beside each task; not what tells the metadata service of it once in a while."""

_STORES_LOGS = "save_logs_periodically"
"""A new Python four times a second for each task: half of what a test without a framework would take."""


class Image:
    """A Python with some distributions and what they require, linked from this one's: made in a moment, offline.

    Parameters
    ----------
    folder : path
        Where it is made.
    distributions : str
        Names as pip knows them, "torch"; the test is skipped where one is not installed here.
    live_logs : bool
        Whether Metaflow stores a task's log all the time, for the run to show, and not at its end alone. Without it a
        container that is killed leaves nothing to be read but what this package has stored.
    """

    def __init__(self, folder: Path, *distributions: str, live_logs: bool = False) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True, with_pip=False)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        self._sources: set[Path] = set()
        for found in _with_requirements(distributions):
            self._link(found, site)
        self.metaflow_home = folder / "metaflow"
        self.metaflow_home.mkdir()
        beside = [*_BESIDE_A_TASK, *([_STORES_LOGS] if live_logs else [])]
        (self.metaflow_home / "config.json").write_text(json.dumps({"METAFLOW_ENABLED_SIDECAR": beside}))

    def _link(self, found: Distribution, site: Path) -> None:
        for name in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            source, target = Path(str(found.locate_file(name))), site / name
            self._sources.add(source.parent)
            if not target.is_symlink():  # two distributions may share a namespace
                target.symlink_to(source)

    @property
    def needs(self) -> list[Path]:
        """The folders that have to be visible where the image is used."""
        return [self.folder, Path(sys.base_prefix), *sorted(self._sources)]

    @property
    def environment(self) -> dict[str, str]:
        """What an image's ENV lines say: this Python first, and nothing to install, as there is no network."""
        path = f"{self.folder / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = {"METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1", "METAFLOW_HOME": str(self.metaflow_home)}
        return {"PATH": path, "LANG": "C.UTF-8", **own}


def _with_requirements(names: Iterable[str]) -> list[Distribution]:
    """The named distributions and, of what they require for this Python, all that is installed."""
    found: dict[str, Distribution] = {}
    waiting = [(name, True) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        name = canonicalize_name(name)
        if name in found:
            continue
        assert name not in _BARRED, f"{name} would be in the image, and tasks could not show that they do without it"
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            if wanted:
                raise
            continue
        required = [Requirement(line) for line in found[name].requires or ()]
        waiting += [(one.name, False) for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return list(found.values())
