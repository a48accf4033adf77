"""Which failures are tried again, and how often: the decision alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.core.exceptions import BadAttribute, GangInterrupt
from metaflow_extensions.gang.core.gang.restarts import RankFailure, RestartPolicy, in_one_line
from metaflow_extensions.gang.core.guard.failure_record import PEER, Failure


def failure(
    exit_code: int | None = 1, exception: str = "", progress: bool = False, order: int = 1, kind: str = "exit"
) -> RankFailure:
    record = Failure(0, kind, "rank 0 ended", 0.0, order=order, rank=0, exit_code=exit_code, exception=exception)
    return RankFailure.of(record, progress, 0)


def refusal(found: RankFailure) -> str:
    return RestartPolicy(3).refusal(found, [], 0.0)


@pytest.mark.parametrize(
    "found",
    [
        failure(-9),
        failure(-11),
        failure(137),
        failure(1, "RuntimeError", order=PEER),
        failure(1, "RuntimeError", progress=True),
        failure(3, progress=True),
        failure(None, kind="stall"),
        failure(None, kind="stopped"),
    ],
)
def test_what_another_try_may_mend(found: RankFailure) -> None:
    assert not refusal(found)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (failure(1, "ImportError", progress=True), "an ImportError comes again in every try"),
        (failure(1, "SyntaxError"), "a SyntaxError comes again in every try"),
        (failure(2, "SystemExit"), "that of a wrong argument"),
        (failure(2), "that of a wrong argument"),
        (failure(1, "TypeError"), "TypeError, raised before any sign of progress"),
        (failure(3), "exit code 3, before any sign of progress"),
    ],
)
def test_what_another_try_cannot_mend(found: RankFailure, why: str) -> None:
    assert why in refusal(found)


def test_restarts_are_counted_in_the_call_or_in_the_window() -> None:
    killed = failure(-9)
    assert not RestartPolicy(2).refusal(killed, [0.0], 1e6)
    assert "started again twice, which is all" in RestartPolicy(2).refusal(killed, [0.0, 1.0], 1e6)
    windowed = RestartPolicy(1, 60.0)
    assert "once within 60 s" in windowed.refusal(killed, [0.0, 100.0], 150.0)
    assert not windowed.refusal(killed, [0.0, 100.0], 161.0)
    assert windowed.title([0.0, 100.0], 161.0) == "restart 1 of 1 within 60 s"
    assert RestartPolicy(3).title([1.0], 2.0) == "restart 2 of 3"


def test_the_users_function_comes_first_and_may_fail() -> None:
    asked: list[RankFailure] = []

    def again(found: RankFailure) -> bool:
        asked.append(found)
        return found.exception == "SyntaxError"

    policy = RestartPolicy(1, 0.0, again)
    assert not policy.refusal(failure(1, "SyntaxError"), [], 0.0)
    assert "restart_on decided so" in policy.refusal(failure(-9), [], 0.0)
    assert (asked[1].signal, asked[1].exit_code) == (9, None)
    broken = RestartPolicy(1, 0.0, lambda found: bool(1 / found.node))
    assert "restart_on raised ZeroDivisionError" in broken.refusal(failure(-9), [], 0.0)


def test_a_function_that_exits_is_told_and_ctrl_c_is_not_held_back() -> None:
    def ends(error: BaseException) -> Callable[[RankFailure], bool]:
        def again(found: RankFailure) -> bool:
            raise error

        return again

    exits = RestartPolicy(1, 0.0, ends(SystemExit(3)))
    assert "not started again: restart_on raised SystemExit: 3." in exits.refusal(failure(-9), [], 0.0)
    for passes in (KeyboardInterrupt(), GangInterrupt()):
        with pytest.raises(type(passes)):
            RestartPolicy(1, 0.0, ends(passes)).refusal(failure(-9), [], 0.0)


async def later(found: RankFailure) -> bool:
    return True


def one_by_one(found: RankFailure) -> Any:
    yield True


class Later:
    async def __call__(self, found: RankFailure) -> bool:
        return True


@pytest.mark.parametrize("again", [later, partial(later), Later(), one_by_one])
def test_a_function_that_a_call_does_not_run_is_refused(again: Any) -> None:
    with pytest.raises(BadAttribute, match="Write it as def, without async and without yield"):
        RestartPolicy.read("@torchrun", 1, 0, again)


@pytest.mark.filterwarnings("error")
def test_what_has_to_be_awaited_is_no_answer() -> None:
    policy = RestartPolicy.read("@torchrun", 1, 0, lambda found: later(found))
    assert "restart_on returned <coroutine object later" in policy.refusal(failure(-9), [], 0.0)
    gc.collect()


@pytest.mark.parametrize("value", [1.5, True, -1, "1.5", None])
def test_restarts_is_a_whole_number(value: Any) -> None:
    with pytest.raises(BadAttribute, match="restarts is a whole number, 0 or more"):
        RestartPolicy.read("@torchrun", value, 0, None)


def test_values_of_a_command_line() -> None:
    policy = RestartPolicy.read("@mpi", "3", "2.5", None)
    assert (policy.restarts, policy.restart_window) == (3, 2.5)
    for values in (("x", 0, None), (-1, 0, None), (1, "x", None), (1, float("inf"), None), (1, 0, 3)):
        with pytest.raises(BadAttribute):
            RestartPolicy.read("@mpi", *values)


def test_the_line_of_the_log() -> None:
    killed = Failure(2, "signal", "rank 5 was killed by SIGKILL (out of memory?)", 0.0, rank=5, exit_code=-9)
    assert in_one_line([killed], ["a"] * 3) == "rank 5 on node 2 was killed by SIGKILL (out of memory?)"
    assert in_one_line([killed], ["a", "b", "c"]).startswith("rank 5 on node 2 (c) was killed")
    raised = Failure(0, "exit", "mpirun exited with code 1", 0.0, "a traceback", exit_code=1, message="ValueError: no")
    assert raised.exception == "ValueError"
    assert in_one_line([raised], ["a"]) == "mpirun exited with code 1, on node 0 (ValueError: no)"
    interrupted = Failure(0, "signal", "rank 0 was interrupted (KeyboardInterrupt)", 0.0, message="KeyboardInterrupt")
    assert in_one_line([interrupted], ["a"]) == "rank 0 on node 0 was interrupted (KeyboardInterrupt)"
    assert in_one_line([killed, raised], ["a"] * 3).count("; ") == 1
