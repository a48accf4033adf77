"""DeepSpeed's configuration as a dict: written to a file, since scripts are given the name of one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.exceptions import BadAttribute
from ...core.remote_shell.hostfile import write_private


def with_files(
    entrypoint_args: Mapping[str, Any] | Sequence[Any] | None, folder: str, name: str
) -> Mapping[str, Any] | Sequence[Any] | None:
    """A script's arguments, with each dict among their values replaced by the path of a JSON file that holds it.

    Parameters
    ----------
    folder : str
        Private to this node; the files go with it.
    name : str
        How the files' names begin.

    Raises
    ------
    BadAttribute
        A dict that JSON cannot hold.

    Example
    -------
    ``with_files({"deepspeed_config": {"train_batch_size": 32}}, folder, "deepspeed-1")``
    """
    if not isinstance(entrypoint_args, Mapping):
        return entrypoint_args
    return {
        key: _written(key, value, os.path.join(folder, f"{name}-{number}.json"))
        if isinstance(value, Mapping)
        else value
        for number, (key, value) in enumerate(entrypoint_args.items())
    }


def _written(key: str, value: Mapping[str, Any], path: str) -> str:
    try:
        text = json.dumps(value, indent=2)
    except (TypeError, ValueError) as error:
        raise BadAttribute(f"entrypoint_args[{key!r}] is a dict that JSON cannot hold: {error}.") from None
    write_private(path, text)
    return path
