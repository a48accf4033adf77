"""What a body gives wrongly to `current.gang` raises there, with a sentence, and the gang goes on."""

from __future__ import annotations

from support.flows import FlowRunner

FLOW = """
import os
from pathlib import Path
from metaflow import FlowSpec, current, gang, step
from metaflow_extensions.gang.core.gang.launch_plan import LaunchPlan, Process

async def later():
    pass

WRONG = {
    "run('')": lambda g: g.run("", check=False),
    "run(None)": lambda g: g.run(None, check=False),
    "run([5])": lambda g: g.run(["true", 5], check=False),
    "run(env=[])": lambda g: g.run(["true"], env=[("A", "b")], check=False),
    "run(env A=B)": lambda g: g.run(["true"], env={"A=B": "c"}, check=False),
    "run(cwd=5)": lambda g: g.run(["true"], cwd=5, check=False),
    "gather(root='0')": lambda g: g.gather(1, root="0"),
    "gather(root=True)": lambda g: g.gather(1, root=True),
    "broadcast(source=None)": lambda g: g.broadcast(1, source=None),
    "lease_port('8000')": lambda g: g.lease_port("8000"),
    "lease_port(1.5)": lambda g: g.lease_port(1.5),
    "launch(())": lambda g: g.launch(LaunchPlan(())),
    "launch(env)": lambda g: g.launch(LaunchPlan((Process(("true",), {"A": 1}),))),
    "start(timeout='x')": lambda g: g.start(Process(("true",), {}), ready="x", timeout="x"),
    "start(None)": lambda g: g.start(None, ready="x"),
    "start(ready=None)": lambda g: g.start(Process(("true",), {}), ready=None),
    "on_preemption(later)": lambda g: g.on_preemption(later),
    "on_preemption(1e30)": lambda g: g.on_preemption(print, seconds=1e30),
    "own_files(None)": lambda g: g.own_files(None),
    "own_folder(5)": lambda g: g.own_folder(5),
}

class Unreadable:
    def __reduce__(self):
        return int, ("seven",)

class Wrong(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        g = current.gang
        self.errors = {}
        for name, call in WRONG.items():
            try:
                self.errors[name] = repr(call(g))
            except Exception as error:
                self.errors[name] = f"{type(error).__name__}: {error}"
        mine = Path(f"mine-{g.node_index}").resolve()
        mine.mkdir(mode=0o700)
        (mine / "thesis.txt").write_text("years of work")
        try:
            g.own_folder(mine)
        except OSError as error:
            self.refused = str(error)
        shared = Path("shared").resolve()
        for _ in range(2):  # nodes of one machine may own the same folder, whoever is the first to write there
            g.own_folder(shared)
            (shared / f"{g.node_index}").touch()
        try:
            g.all_gather(Unreadable())
        except Exception as error:
            self.unreadable = f"{type(error).__name__}: {error}"
        try:
            g.start(Process(("sh", "-c", "exit 3"), dict(os.environ), title="server"), ready="never")
        except Exception as error:
            self.failures = g.all_gather(error)
        self.right = g.run(["sh", b"-c", "test -d .", Path("x")]), g.gather(g.node_index, root=1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs[:1])
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Wrong()
"""


def test_each_is_a_sentence_in_the_body_and_a_folder_with_files_is_not_taken(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW).ok(120)
    errors = run.artifact("join", "errors")
    assert {name: error for name, error in errors.items() if not error.startswith("BadAttribute: ")} == {}
    assert "'A=B'" in errors["run(env A=B)"] and "lease_port(exact='8000')" in errors["lease_port('8000')"]
    assert "would be removed" in run.artifact("join", "refused")
    assert run.artifact("join", "right") == (0, None)
    assert [(run.folder / f"mine-{node}" / "thesis.txt").read_text() for node in (0, 1)] == ["years of work"] * 2
    unreadable = run.artifact("join", "unreadable")
    assert unreadable.startswith(
        "ValueTooStrange: all_gather(): the value of node 0 cannot be made of its pickle on node 0"
    )
    assert "ValueError: invalid literal" in unreadable
    assert [failure.exit_code for failure in run.artifact("join", "failures")] == [3, 3]
    assert not (run.folder / "shared").exists()
