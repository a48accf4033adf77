"""Exceptions from the environment's proxy, so that connections between the nodes do not use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

from ..logs import say

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
"""The variables that name a proxy, in lower case; programs read them in upper case, too."""

EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
"""The variables that list the hosts to be reached without one. Of the last two or three a program reads only one."""

LONGEST = 100_000
"""Bytes of one such variable. Linux starts no program with a string of 128 KiB in its environment."""


def reach_nodes_directly(addresses: Iterable[str], environ: MutableMapping[str, str]) -> None:
    """Change ``environ``, the step's own, as :func:`without_proxy` says, and log it."""
    changed = without_proxy(addresses, environ)
    if changed:
        environ.update(changed)
        say(f"A proxy is set; the nodes' addresses were added to {', '.join(changed)}, so that they connect directly.")


def without_proxy(addresses: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """What has the nodes of a gang reach each other directly where ``environ`` names a proxy.

    gRPC, which TensorFlow, JAX and Ray use, sends even the addresses of a private network to the proxy, and then waits
    for ever.

    Parameters
    ----------
    addresses : iterable of str
        Of the nodes: IP addresses and names.
    environ : mapping
        Of the step.

    Returns
    -------
    dict
        The variables of :data:`EXCEPTIONS`, each with what it has and all that it lacks; empty where no proxy is named
        or nothing is lacking. Where there are too many addresses for a variable, it has as many as it can have.
    """
    if not any(environ.get(name) or environ.get(name.upper()) for name in PROXIES):
        return {}
    wanted = ["localhost", "127.0.0.1"]
    for address in addresses:
        plain = address.partition("%")[0]
        # An IPv6 address stands in brackets in a URL, and some programs compare it as it stands there.
        wanted += [plain, f"[{plain}]"] if ":" in plain else [plain]
    general = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    changed = {}
    for name in EXCEPTIONS:
        # A program that finds one of them looks at no other, so that each has to say what the user has said in any.
        before = environ.get(name) or general
        listed = [entry.strip() for entry in before.split(",") if entry.strip()]
        after = ",".join(listed)
        present = set(listed)
        for entry in wanted:
            if entry not in present and len(after) + len(entry) < LONGEST:
                after = f"{after},{entry}" if after else entry
                present.add(entry)
        if after != environ.get(name):
            changed[name] = after
    return changed
