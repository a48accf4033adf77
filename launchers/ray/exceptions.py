"""The exceptions of ``@metaflow_ray``."""

from __future__ import annotations

from ...core.exceptions import GangException, ToolMissing
from ...core.guard.text import indent


class RayException(GangException):
    """A node of the Ray cluster did not come up, or a script on it failed; the message says which and why."""

    headline = "@metaflow_ray"


class RayNotInstalledException(RayException, ToolMissing):
    """There is no Ray on a node, or another one than on node 0."""

    headline = "@metaflow_ray: Ray is missing"


def not_joined(node: int, head: str, reason: str, raylet_log: str) -> RayException:
    """The exception of a node that did not join.

    Parameters
    ----------
    head : str
        Address and port of Ray's head.
    reason : str
        A sentence: what its ``ray start`` did.
    raylet_log : str
        The last lines of its raylet's log, or "".
    """
    parts = [f"Node {node} did not join the Ray cluster at {head}: {reason}"]
    if raylet_log:
        parts.append(f"The last lines of its raylet's log:\n{indent(raylet_log)}")
    return RayException("\n".join(parts))
