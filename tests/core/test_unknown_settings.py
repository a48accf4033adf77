"""A misspelt setting METAFLOW_GANG_... is named, with the one that was meant; what the package sets itself is not."""

from __future__ import annotations

import re
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.paths import ROOT

from metaflow_extensions.gang.core.settings.table import ALL
from metaflow_extensions.gang.core.settings.unknown import OWN, tell_unknown_settings, unknown_settings


def test_a_misspelt_setting_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        tell_unknown_settings(["METAFLOW_GANG_KILL_GRACES", "METAFLOW_GANG_DEBG", "METAFLOW_GANG_X", "METAFLOW_USER"])
    assert capsys.readouterr().err.splitlines() == [
        "[gang] METAFLOW_GANG_DEBG is no setting, and has no effect. Did you mean METAFLOW_GANG_DEBUG?",
        "[gang] METAFLOW_GANG_KILL_GRACES is no setting, and has no effect. Did you mean METAFLOW_GANG_KILL_GRACE?",
        "[gang] METAFLOW_GANG_X is no setting, and has no effect. docs/settings.md has all of them.",
    ]


def test_every_variable_in_the_code_is_a_setting_or_one_s_own() -> None:
    names = {setting.variable for setting in ALL} | OWN
    assert unknown_settings(names) == []
    for folder in ("backends", "core", "launchers", "plugins", "toplevel"):
        for path in Path(ROOT, folder).rglob("*.py"):
            found = set(re.findall(r"METAFLOW_GANG_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")))
            assert found <= names, path
