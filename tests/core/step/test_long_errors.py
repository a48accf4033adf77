"""An exception whose text has millions of lines: its beginning and end are shown, at once, whoever raised it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.flows import FlowRun

pytestmark = pytest.mark.slow

END_S = 90.0

FLOW = """
import os
from metaflow import FlowSpec, current, step, torchrun

TEXT = "begin\\n" + "a line of a long text\\n" * 500_000 + "end"

def fails():
    raise ValueError(TEXT)

class Long(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @torchrun
    @step
    def work(self):
        if os.environ["WHO"] == "body":
            if current.parallel.node_index:
                raise ValueError(TEXT)
            current.gang.barrier()
        current.torch.run(entrypoint=fails if os.environ["WHO"] == "function" else "fails.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Long()
"""

SCRIPT = 'raise ValueError("begin\\n" + "a line of a long text\\n" * 500_000 + "end")\n'


@pytest.mark.parametrize("who", ["body", "function", "script"])
def test_a_long_text_is_cut_before_the_console_has_to_print_it(who: str, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "fails.py").write_text(SCRIPT)
    with FlowRun(tmp_path / "flow.py", folder=tmp_path, env={"WHO": who}) as run:
        output = run.fails(END_S)
    assert re.search(r"\[gang\] \.\.\. \d{7,8} characters are left out here \.\.\.", output)
    assert "ValueError: begin" in output and re.search(r"(^|[ |])end$", output, re.MULTILINE)
    assert output.count("a line of a long text") < 10_000
