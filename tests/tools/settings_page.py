"""Writes docs/settings.md of the table in core/settings/table.py: ``python tests/tools/settings_page.py``."""

from __future__ import annotations

from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions

from metaflow_extensions.gang.core.settings.kinds import Setting
from metaflow_extensions.gang.core.settings.table import METRICS_FILE, SWITCHES, TABLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

HEAD = """# Settings

<!-- made by `make docs` of core/settings/table.py -->

The waits and limits that a site may change for all of its flows. Each is an environment variable of the run and of
node 0's task, or an entry of Metaflow's configuration file, `~/.metaflowconfig/config.json`:

```json
{"METAFLOW_GANG_LOST_HOST_TIMEOUT": "60"}
```

An attribute of the step's decorator comes before the setting of the same name. What node 0 has counts on all nodes from
the moment when all have joined; until then a node uses its own. A value that is not valid is refused before anything
starts: `METAFLOW_GANG_BODY_GRACE=soon: it is a number of seconds greater than 0 and at most 3600.` A variable
`METAFLOW_GANG_...` that is no setting is named once in a run, with the setting that was meant.

| setting | default | |
|---|---|---|
"""


def row(setting: Setting) -> str:
    unit = {"seconds": "s", "megabytes": "MiB"}.get(setting.unit, setting.unit)
    default = f"{setting.default:.10g} {unit}"
    attribute = f" Also the attribute `{setting.name}`." if setting.attribute else ""
    text = f"{setting.purpose} {setting.origin}{attribute} It is {setting.bounds}."
    return f"| `{setting.variable}` | {default} | {text} |\n"


def page() -> str:
    switches = "".join(
        f"| `{switch.variable}` | {'on' if switch.default else 'off'} | {switch.purpose} It is {switch.bounds}. |\n"
        for switch in SWITCHES
    )
    places = ", ".join(f"`{{{name}}}`" for name in METRICS_FILE.placeholders)
    path = (
        f"| `{METRICS_FILE.variable}` | none | {METRICS_FILE.purpose} It is a path, which may have {places} in it. |\n"
    )
    return HEAD + "".join(map(row, TABLE)) + switches + path


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
