"""A user's function, called in processes of its own: what travels, what is refused, what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.core.guard.rank_reports.error_file import error_record, error_text
from metaflow_extensions.gang.core.ranks import functions

DEADLINE_S = 60

FLOW = '''
"""A flow file as users write them: functions, classes, imports, and a guard that starts everything."""
from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import subprocess
import sys

import helper_beside_flow

TABLE = {"started": __name__}


@dataclasses.dataclass
class Config:
    epochs: int
    tags: list[str] = dataclasses.field(default_factory=list)

    def steps(self, per_epoch):
        return [self.epochs * per_epoch, os.environ["RANK"]]


@dataclasses.dataclass
class Result:
    rank: int
    loss: float


class Broken(Exception):
    def __init__(self, code, why):
        super().__init__(code, why)
        self.code = code


class CannotComeBack(Exception):
    def __init__(self, code, why):
        super().__init__(why)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ["logged", function(*args, **kwargs)]

    return wrapper


@logged
def wrapped(x):
    return x * 2


def train(config, scale=1):
    assert isinstance(config, Config), type(config)
    return Result(int(os.environ["RANK"]), config.epochs * scale * helper_beside_flow.FACTOR)


def remembers():
    TABLE["seen"] = 1
    return [TABLE, globals() is sys.modules["__mp_main__"].__dict__, sys.argv]


def breaks():
    raise Broken(7, "loss is nan")


def breaks_for_good():
    raise CannotComeBack(7, "lost")


def returns_socket():
    import socket

    return socket.socket()


def leaves():
    sys.exit(0)


def leaves_with(code):
    sys.exit(code)


def call(function, arguments, folder, ranks=2):
    import metaflow
    from metaflow_extensions.gang.core.guard.rank_reports.error_file import error_record
    from metaflow_extensions.gang.core.ranks import functions

    written = functions.write_call(function, arguments, folder)
    children = []
    for rank in range(ranks):
        error_file = os.path.join(folder, f"error-{rank}.json")
        env = dict(os.environ, RANK=str(rank), TORCHELASTIC_ERROR_FILE=error_file)
        # Not from this folder, and without its path: the call has to bring it along.
        argv = [sys.executable, "-u", written.script, written.path]
        children.append((subprocess.Popen(argv, env=env, cwd="/", stderr=subprocess.PIPE), error_file))
    codes, errors, texts = [], [], []
    for rank, (child, error_file) in enumerate(children):
        texts.append(child.communicate(timeout=50)[1].decode())
        codes.append(child.returncode)
        errors.append((functions.load_error(error_file, f"rank {rank} on node 0"), error_record(error_file)))
    values = {rank: functions.load_return(value) for rank, value in functions.read_returns(written).items()}
    functions.remove_call(written)
    return codes, values, errors, texts


def main(what, folder):
    if what == "train":
        codes, values, _, texts = call(train, {"config": Config(3), "scale": 2}, folder)
        assert all(type(value) is Result for value in values.values()), values
        print(json.dumps([codes, [dataclasses.astuple(value) for value in values.values()], texts]))
    elif what == "breaks":
        codes, values, errors, texts = call(breaks, None, folder)
        error, record = errors[1]
        assert type(error) is Broken and error.code == 7
        print(json.dumps([codes, values, str(error.__cause__), record, texts]))
    elif what == "breaks_for_good":
        codes, values, errors, texts = call(breaks_for_good, None, folder, ranks=1)
        print(json.dumps([codes, values, errors[0][0], errors[0][1], texts]))
    elif what == "returns_socket":
        codes, values, errors, texts = call(returns_socket, None, folder, ranks=1)
        assert type(errors[0][0]) is TypeError
        print(json.dumps([codes, values, str(errors[0][0])]))
    elif what == "bound":
        print(json.dumps(call(Config(2).steps, [5], folder)[:2]))
    elif what == "wrapped":
        print(json.dumps(call(wrapped, [21], folder)[:2]))
    elif what == "remembers":
        print(json.dumps(call(remembers, None, folder, ranks=1)[:2]))
    elif what == "leaves":
        print(json.dumps([call(leaves, None, folder, ranks=1)[:2], call(leaves_with, [3], folder, ranks=1)[:2]]))
    print("left:", sorted(os.listdir(folder)))


if __name__ == "__main__":
    print("the flow starts")
    main(sys.argv[1], sys.argv[2])
'''


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside_flow.py").write_text("FACTOR = 10\n")
    path = tmp_path / "flow.py"
    path.write_text(FLOW)
    return path


def run_flow(flow: Path, what: str) -> object:
    """What the flow printed, which is what its function did in two children."""
    folder = flow.parent / "private"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, flow.name, what, str(folder)],
        cwd=flow.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("the flow starts") == 1, "a child ran the flow"
    left = [name for name in json.loads(lines[-1].removeprefix("left: ").replace("'", '"')) if "error" not in name]
    assert left == []
    return json.loads(lines[-2])


def test_a_function_of_the_flow_file_gets_dataclasses_and_returns_them(flow: Path) -> None:
    assert run_flow(flow, "train") == [[0, 0], [[0, 60], [1, 60]], ["", ""]]


def test_a_bound_method(flow: Path) -> None:
    assert run_flow(flow, "bound") == [[0, 0], {"0": [10, "0"], "1": [10, "1"]}]


def test_a_wrapped_function(flow: Path) -> None:
    assert run_flow(flow, "wrapped") == [[0, 0], {"0": ["logged", 42], "1": ["logged", 42]}]


def test_the_flow_file_is_one_module_under_another_name(flow: Path) -> None:
    answer = [{"started": "__mp_main__", "seen": 1}, True, [str(flow)]]
    assert run_flow(flow, "remembers") == [[0], {"0": answer}]


def test_an_exception_comes_back_with_the_ranks_traceback(flow: Path) -> None:
    codes, values, cause, record, texts = run_flow(flow, "breaks")  # type: ignore[misc]
    assert codes == [1, 1]
    assert values == {}
    assert "In rank 1 on node 0:" in cause
    assert f'File "{flow}"' in cause and "in breaks" in cause and "rank_main" not in cause
    # torch's own tools read the file too.
    assert record["message"]["message"] == "Broken: (7, 'loss is nan')"
    assert record["message"]["extraInfo"]["py_callstack"] in cause
    assert int(record["message"]["extraInfo"]["timestamp"]) > 0
    assert record["gang"]["type"] == "__mp_main__.Broken"
    assert texts[0] == record["message"]["extraInfo"]["py_callstack"]


def test_an_exception_that_cannot_be_pickled_comes_back_as_text(flow: Path) -> None:
    codes, _, error, record, texts = run_flow(flow, "breaks_for_good")  # type: ignore[misc]
    assert codes == [1]
    assert error is None
    assert record["gang"] == {
        "type": "__mp_main__.CannotComeBack",
        "time": record["gang"]["time"],
        "exit_code": 1,
        "pickle": None,
    }
    assert "CannotComeBack: lost" in texts[0]


def test_a_return_value_that_cannot_be_pickled_is_named(flow: Path) -> None:
    codes, values, message = run_flow(flow, "returns_socket")  # type: ignore[misc]
    assert (codes, values) == ([1], {})
    assert message.startswith("returns_socket() returned a socket.socket that cannot be pickled")


def test_sys_exit_in_a_function(flow: Path) -> None:
    assert run_flow(flow, "leaves") == [[[0], {"0": None}], [[3], {}]]


def test_a_flow_file_without_a_guard_says_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, subprocess, sys
            import metaflow
            from metaflow_extensions.gang.core.ranks import functions
            def work(): pass
            def start():
                if len(sys.argv) < 2:
                    sys.exit(4)
                call = functions.write_call(work, None, sys.argv[1])
                sys.exit(subprocess.run([sys.executable, call.script, call.path], timeout=50).returncode)
            start()
            """
        )
    )
    folder = tmp_path / "private"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 1
    assert 'Put what starts the flow under `if __name__ == "__main__":`' in done.stderr


def test_tracebacks_bear_the_rank_where_it_is_asked_for(tmp_path: Path) -> None:
    call = functions.write_call(json.loads, ["{"], str(tmp_path), number_lines=True)
    done = subprocess.run(
        [sys.executable, call.script, call.path],
        env={**os.environ, "RANK": "3"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert {line[:9] for line in done.stderr.splitlines()} == {"[rank3]: "}


@pytest.mark.uncounted
def test_a_function_of_a_package_does_not_import_the_main_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gang_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("import sys\ndef add(a, b):\n    return [a + b, '__mp_main__' in sys.modules]\n")
    monkeypatch.syspath_prepend(tmp_path)
    from gang_test_package.work import add  # type: ignore[import-not-found]

    call = functions.write_call(add, [2, 3], str(tmp_path))
    assert os.stat(call.path).st_mode & 0o077 == 0
    subprocess.run(
        [sys.executable, call.script, call.path], env={**os.environ, "RANK": "5"}, check=True, timeout=DEADLINE_S
    )
    assert {rank: functions.load_return(value) for rank, value in functions.read_returns(call).items()} == {
        5: [5, False]
    }


def top_level(a: int, b: int = 0) -> int:
    return a + b


async def coroutine() -> None: ...


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (lambda: 1, None, "A lambda has no name by which another process could find it"),
        (coroutine, None, "coroutine"),
        (top_level, {"c": 1}, "entrypoint_args do not fit top_level(): missing a required argument: 'a'"),
        (top_level, [1, 2, 3], "too many positional arguments"),
        (top_level, "12", "has to be a dict of its parameters, or a list"),
        (top_level, {1: 2}, "names of parameters are strings"),
        (top_level, {"a": open(os.devnull)}, "The argument 'a' of top_level(), a TextIOWrapper, cannot be sent"),  # noqa: SIM115
        (open(os.devnull).read, None, "cannot be sent to another process"),  # noqa: SIM115
    ],
)
def test_what_cannot_travel_is_refused_with_what_works(
    function: object, arguments: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(functions.NotCallable) as caught:
        functions.write_call(function, arguments, str(tmp_path))  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_nested_functions_are_refused(tmp_path: Path) -> None:
    def nested() -> None: ...

    with pytest.raises(
        functions.NotCallable, match=r"nested\(\) is defined inside test_nested_functions_are_refused\(\)"
    ):
        functions.write_call(nested, None, str(tmp_path))


@pytest.mark.parametrize("content", [None, "", "[1]", '{"message": 3}', '{"gang": {"pickle": "AAAA"}}'])
def test_error_files_that_tell_nothing(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    if content is not None:
        path.write_text(content)
    assert functions.load_error(str(path), "rank 0") is None
    assert isinstance(error_text(error_record(str(path))), str)
