"""A setting METAFLOW_GANG_... that is not valid is refused before anything starts, whichever it is."""

from __future__ import annotations

from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.flows import FlowRunner, without_gzip

from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.settings.kinds import PathSetting, Setting, Switch
from metaflow_extensions.gang.core.settings.table import ALL
from metaflow_extensions.gang.core.step.decorator import GangDecorator

LIMIT = 60.0

FLOW = """
from metaflow import FlowSpec, gang, step

class Refused(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @gang
    @step
    def train(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Refused()
"""


def bad_values(setting: Setting | Switch | PathSetting) -> list[str]:
    if isinstance(setting, Setting):
        least = [] if setting.may_be_off and setting.above == 0 else [f"{setting.above:g}"]
        return ["abc", "-1", "nan", f"{setting.most + 1:.10g}", *least]
    return ["/metrics/{nobody}.prom"] if isinstance(setting, PathSetting) else ["maybe", "2"]


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.variable)
def test_every_setting_is_looked_at_where_the_flow_is_scheduled(
    setting: Setting | Switch | PathSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    for value in bad_values(setting):
        monkeypatch.setenv(setting.variable, value)
        with pytest.raises(BadAttribute) as raised:
            GangDecorator().step_init(nothing, nothing, "train", [], nothing, nothing, nothing)
        assert str(raised.value).startswith(f"{setting.variable}={value}: "), raised.value


@pytest.mark.parametrize("word", ["1", "true", "YES", "on", "0", "False", "no", "off"])
def test_a_switch_takes_the_words_that_its_refusal_names(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in (one for one in ALL if isinstance(one, Switch)):
        assert word.lower() in switch.bounds.replace("(", " ").replace(",", " ").replace(")", " ").split()
        monkeypatch.setenv(switch.variable, word)
        assert switch.read() is (word.lower() in ("1", "true", "yes", "on"))


def test_a_setting_that_only_the_end_of_a_step_needs_starts_no_task(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"METAFLOW_GANG_TRACE_MEGABYTES": "abc"})
    run.fails(LIMIT)
    assert "METAFLOW_GANG_TRACE_MEGABYTES=abc: it is a number of megabytes greater than 0" in run.output, run.dump()
    assert "Task is starting" not in run.output and "Traceback" not in without_gzip(run.output), run.dump()
