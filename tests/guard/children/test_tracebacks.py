"""Which exception a traceback tells, and what is kept of a long one: its class, wherever it stands."""

from __future__ import annotations

import pytest

from metaflow_extensions.gang.core.guard.tracebacks import (
    DETAIL_LIMIT,
    DETAIL_LINES,
    MESSAGE_LIMIT,
    exception_message,
    last_traceback,
    shortened,
)

BEGINS = "Traceback (most recent call last):\n  File 'x', line 3, in f\n    f()\n"
CAUSE = "\n\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "x", line 3, in f
  |     raise ExceptionGroup("many", found)
  | ExceptionGroup: many (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "x", line 1, in f
    | ValueError: one
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "x", line 1, in f
    | KeyError: 'two'
    +------------------------------------"""


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (f"{BEGINS}ValueError: no: way\nsecond line", "ValueError: no: way"),
        (f"{BEGINS}ValueError: first\nKeyError: in the text\nTypeError: too", "ValueError: first"),
        (f"{BEGINS}ValueError: \n\n  after a break", "ValueError: after a break"),
        (f"{BEGINS}torch.cuda.OutOfMemoryError: much", "OutOfMemoryError: much"),
        (f"{BEGINS}__main__.f.<locals>.Mine: x", "Mine: x"),
        (f"{BEGINS}KeyboardInterrupt", "KeyboardInterrupt"),
        (f"{BEGINS}ValueError: one{CAUSE}{BEGINS}RuntimeError: two", "RuntimeError: two"),
        (f"{BEGINS}ValueError: one{DURING}{BEGINS}RuntimeError: two", "RuntimeError: two"),
        (f"{BEGINS}ValueError: one{CAUSE}RuntimeError: it has no frames", "RuntimeError: it has no frames"),
        (f"usage: x [-h]\n{BEGINS}SystemExit: 2", "SystemExit: 2"),
        (GROUP, "ExceptionGroup: many (2 sub-exceptions)"),
        (f"{BEGINS}ValueError: \0 \x1b[31mred\x1b[0m \ud800", r"ValueError: \x00 \x1b[31mred\x1b[0m \ud800"),
        ("Killed by nobody", ""),
        ("", ""),
    ],
)
def test_the_message_of_what_was_raised(trace: str, message: str) -> None:
    assert exception_message(trace) == message


def test_a_message_for_one_line_has_its_limit() -> None:
    line = exception_message(f"{BEGINS}ValueError: {'x' * 200_000}")
    assert line.startswith("ValueError: xxx") and line.endswith(" ...") and len(line) == MESSAGE_LIMIT


@pytest.mark.parametrize("frames", [1, 40, 2_000])
@pytest.mark.parametrize("text", ["x" * 200_000, "a line\n" * 100_000, "short"])
@pytest.mark.parametrize("before", ["", f"{BEGINS}KeyError: 'the cause'{CAUSE}"])
def test_what_is_cut_keeps_the_class_and_the_beginning_of_the_text(before: str, text: str, frames: int) -> None:
    """Also where it is cut twice: in its rank, and by the guard."""
    calls = "".join(
        f'  File "/home/user/some/where/train.py", line {n}, in f{n}\n    f{n + 1}()\n' for n in range(frames)
    )
    trace = f"{before}Traceback (most recent call last):\n{calls}ValueError: begin {text}\nand end"
    for limit, lines in ((30_000, 600), (DETAIL_LIMIT, DETAIL_LINES)):
        trace = shortened(trace, limit, lines)
        assert len(trace) <= limit and trace.count("\n") <= lines
        assert trace.startswith(before or BEGINS.split("\n")[0]) and trace.endswith("and end")
        assert trace.count("ValueError: begin") == 1
        assert exception_message(trace).startswith("ValueError: begin")


def test_the_last_traceback_of_an_output_is_that_of_a_whole_group() -> None:
    assert last_traceback(f"before\n{BEGINS}KeyError: 'caught'\nmore\n{GROUP}\n") == GROUP
