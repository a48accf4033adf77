"""The step's own process as a Ray driver: how it finds the cluster, authenticates, and disconnects."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any

from ...core.logs import say

LEAVE_S = 1.0
"""For a failed body's connection to Ray to end: it takes a third of that where Ray lives, else five seconds."""


def use_cluster(variables: Mapping[str, str], environ: MutableMapping[str, str]) -> None:
    """Have ``ray.init()`` in the step, and in the programs it starts, join the cluster."""
    before = dict(environ)
    address = before.get("RAY_ADDRESS")
    if address and address != variables["RAY_ADDRESS"]:
        say(f"RAY_ADDRESS was {address}; in this step it is that of the step's own cluster.")
    environ.update(variables)
    # At the program's end, C++ would offer its last metrics, for twenty seconds, to a Ray that may be gone by then.
    environ.setdefault("RAY_enable_metrics_collection", "0")
    # A Ray that is imported already has read its settings; it got the token when the nodes agreed on one.
    if "ray" in sys.modules and "RAY_enable_metrics_collection" not in before:
        with contextlib.suppress(Exception):  # another Ray's inner workings: its end may take longer
            _configure(enable_metrics_collection=False)


def leave_cluster(ok: bool) -> None:
    """End this process's connection to Ray, where it has one: without a head, Ray would wait a minute for it.

    After a failure (not ``ok``) it is given up where that takes long, since Ray itself may be gone by then.
    """
    ray = sys.modules.get("ray")
    if ray is None:
        return
    # On a thread, so that a gang that stops meanwhile need not wait for what C++ is doing.
    thread = threading.Thread(target=_shut_down, args=(ray,), daemon=True)
    thread.start()
    try:
        thread.join(None if ok else LEAVE_S)
    finally:
        if thread.is_alive():
            atexit.unregister(ray.shutdown)


def _shut_down(ray: Any) -> None:
    with contextlib.suppress(Exception):  # the body's own exception is the better one
        ray.shutdown()


def can_take_token() -> bool:
    """Whether Ray in this very process, should the flow have imported it already, can still take a token."""
    return "RAY_AUTH_MODE" in os.environ or "ray" not in sys.modules or _set_token_mode()


def _set_token_mode() -> bool:
    try:
        _configure(AUTH_MODE="token")
    except Exception as error:  # another Ray's inner workings
        say(f"The Ray cluster has no token, since Ray was imported before the step ({error}).")
        return False
    return True


def _configure(**settings: Any) -> None:
    """Change settings of Ray in this process, which has been imported already."""
    from ray._raylet import Config

    Config.initialize(json.dumps(settings))
