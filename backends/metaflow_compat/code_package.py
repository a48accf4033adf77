"""The flow's code as Metaflow packs it: stored once for a run, and unpacked where a task runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...core.metaflow_compat.lookup import imported, member

_PURPOSE = "give a job the flow's code"


class CodePackage(NamedTuple):
    """Where the package of a run is, and how Metaflow describes it."""

    metadata: str
    sha: str
    url: str


def store(flow_datastore: Any, package: Any) -> CodePackage:
    """Store the package of a run in the flow's datastore; for the same content the place is the same."""
    metadata = member(package, "package_metadata", "a code package", _PURPOSE)
    if imported("metaflow.metaflow_config", "FEAT_ALWAYS_UPLOAD_CODE_PACKAGE", _PURPOSE):
        return CodePackage(metadata, package.package_sha(), package.package_url())
    save = member(flow_datastore, "save_data", "a flow's datastore", _PURPOSE)
    url, sha = save([member(package, "blob", "a code package", _PURPOSE)], len_hint=1)[0]
    return CodePackage(metadata, sha, url)


def load(flow_datastore: Any, sha: str) -> bytes:
    """The package's bytes."""
    found = member(flow_datastore, "load_data", "a flow's datastore", _PURPOSE)([sha])
    return next(bytes(content) for _, content in found)


def unpack_commands(metadata: str, archive: str, folder: str) -> list[str]:
    """The lines of shell that unpack file ``archive`` into ``folder``; words of them are not quoted further."""
    kind = imported("metaflow.package", "MetaflowPackage", _PURPOSE)
    commands = member(kind, "get_extract_commands", "metaflow.package.MetaflowPackage", _PURPOSE)
    return [str(command) for command in commands(metadata, archive, folder)]


def variables(metadata: str, folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """Variables by which Python finds the code in ``folder``: those to set, and those whose value comes before the one
    that is there, with a colon between them.
    """
    kind = imported("metaflow.package", "MetaflowPackage", _PURPOSE)
    found = member(kind, "get_post_extract_env_vars", "metaflow.package.MetaflowPackage", _PURPOSE)(metadata, folder)
    set_to = {name[:-1]: value for name, value in found.items() if name.endswith(":")}
    return set_to, {name: value for name, value in found.items() if not name.endswith(":")}
