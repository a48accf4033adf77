"""What a process writes because its guard has interrupted it is no progress; whatever else it writes is."""

from __future__ import annotations

from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.rank_reports.tail import Tail
from metaflow_extensions.gang.core.guard.stalls.output import Output

REPORT = """\
[W1129 12:37:24.596768811 TCPStore.cpp:340] [c10d] TCP client failed to connect/validate to host 127.0.0.1:29557 - \
retrying (try=0, timeout=1800000ms, delay=3547ms): Interrupted system call
Exception raised from delay at /__w/pytorch/pytorch/torch/csrc/distributed/c10d/socket.cpp:113 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x9d (0x7fa4e4d80b8d in .../torch/lib/libc10.so)
frame #3: <unknown function> + 0x163c31e (0x7fa4cfe3c31e in .../torch/lib/libtorch_cpu.so)
<omitting python frames>
frame #37: _start + 0x21 (0x561d133c9081 in /usr/bin/python)

"""
"""Of torch 2.13, its C++ types shortened."""

LABELLED = "".join(f"[default1]:{line}\n" for line in REPORT.splitlines())
"""As torchrun's agent passes it on."""

ELSE = "[W1129 12:37:24 TCPStore.cpp:340] [c10d] TCP client failed to connect/validate to host 10.0.0.1:1 - retrying\n"


class Process:
    """One process's output, as its guard keeps it."""

    def __init__(self, folder: Path) -> None:
        self.tail = Tail()
        self._stream, self._log = self.tail.stream(), folder / "log"
        self.output = Output(lambda: {7: self.tail}, lambda: str(self._log))

    def is_new(self, text: str, asked: bool = True) -> bool:
        """Whether ``text``, written just after the process was asked for its stack, counts."""
        assert not self.output.is_new()
        if asked:
            self.output.asked()
        self._stream.write(text.encode())
        return self.output.is_new()

    def log(self) -> None:
        self._log.write_text("a line of gang_log")


@pytest.mark.parametrize("text", [REPORT, LABELLED, REPORT + "frame #1: not over", "select: Interrupted system call\n"])
def test_a_report_of_an_interruption_does_not_count(tmp_path: Path, text: str) -> None:
    assert not Process(tmp_path).is_new(text)


@pytest.mark.parametrize("text", ["step 3\n", ELSE, REPORT + "step 3\n", "step 3\n" + LABELLED, "\n", "loading ..."])
def test_all_other_output_counts(tmp_path: Path, text: str) -> None:
    assert Process(tmp_path).is_new(text)


def test_nothing_is_left_out_of_a_process_that_was_not_asked(tmp_path: Path) -> None:
    assert Process(tmp_path).is_new(REPORT, asked=False)


def test_each_output_counts_once_and_a_line_of_gang_log_beside_a_report_counts(tmp_path: Path) -> None:
    process = Process(tmp_path)
    assert process.is_new("step 1\n")
    assert not process.is_new(REPORT)
    process.log()
    assert process.output.is_new()
    assert process.is_new("step 2\n")
