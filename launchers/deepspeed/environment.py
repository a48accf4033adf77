"""Variables for DeepSpeed's ranks: the accelerator, those of the user's own file, and those that a step has changed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

# Modules of accelerators that DeepSpeed finds by itself.
_OTHER_ACCELERATORS = ("intel_extension_for_pytorch", "habana_frameworks", "torch_npu", "torch_mlu", "torch_sdaa")


def accelerator_variables(gpus: int, environ: Mapping[str, str]) -> dict[str, str]:
    """DS_ACCELERATOR=cpu where there is no accelerator; empty where the user has named one, or one may be there."""
    if "DS_ACCELERATOR" in environ or gpus:
        return {}
    if any(importlib.util.find_spec(name) for name in _OTHER_ACCELERATORS):
        return {}
    return {"DS_ACCELERATOR": "cpu"}


def environment_file(environ: Mapping[str, str], cwd: str) -> dict[str, str]:
    """The variables in DeepSpeed's own ``.deepspeed_env`` of the home and the working folder.

    DeepSpeed would write it on the command line that starts the ranks of other nodes, where everybody can read it.
    """
    name = environ.get("DS_ENV_FILE", ".deepspeed_env")
    found: dict[str, str] = {}
    for folder in (os.path.expanduser("~"), cwd):
        try:
            with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        found.update(_split(line) for line in lines if "=" in line)
    return found


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name.strip(), value.strip()


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that differ between two environments; None for one that is gone."""
    changed: dict[str, str | None] = {name: value for name, value in now.items() if before.get(name) != value}
    changed.update({name: None for name in before if name not in now})
    return changed
