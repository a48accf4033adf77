"""The flows that befall things on Slurm."""

from __future__ import annotations

from collections.abc import Sequence

AT_WORK = "AT WORK"
SAVED = "SAVED"

_WORKS = """
import json, os, sys
from metaflow import FlowSpec, current, gang, retry, slurm, step

class Works(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=NODES)

    @retry(times=RETRIES, minutes_between_retries=0)
    @slurm(OPTIONS)
    @gang(all_nodes_started_timeout=600)
    @step
    def work(self):
        file = f"FOLDER/saved-{current.gang.node_index}"
        self.resumed = open(file).read() if os.path.exists(file) else ""

        def save():
            with open(file, "w") as saved:
                saved.write(f"attempt {current.retry_count}")
            print("SAVED", flush=True)

        current.gang.on_preemption(save)
        current.gang.barrier()
        if current.retry_count == 0:
            with open(file, "w") as checkpoint:
                checkpoint.write("a checkpoint")
            print("AT WORK", flush=True)
            waits = "import os, time\\nwhile not os.path.exists('FOLDER/go'): time.sleep(0.1)"
            current.gang.run([sys.executable, "-c", waits])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.resumed = [one.resumed for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.resumed))

if __name__ == "__main__":
    Works()
"""


def works(folder: object, nodes: int = 3, options: str = "", retries: int = 0) -> str:
    """A gang each node of which has, in the first attempt, a checkpoint and a rank, which waits for the file ``go``.

    Its result is what each node of the last attempt has found: "a checkpoint", or "attempt 0" where it was told to end
    and has saved.

    Parameters
    ----------
    folder : path
        For what is saved, and ``go``.
    options : str
        Of ``@slurm``.
    retries : int
        Of ``@retry``.
    """
    given = {"NODES": nodes, "OPTIONS": options, "RETRIES": retries, "FOLDER": folder}
    text = _WORKS
    for name, value in given.items():
        text = text.replace(name, str(value))
    return text


_FANS_OUT = """
import json, os, time
from metaflow import FlowSpec, current, retry, slurm, step

class FansOut(FlowSpec):
    @step
    def start(self):
        self.tasks = list(range(TASKS))
        self.next(self.work, foreach="tasks")

    @retry(times=RETRIES, minutes_between_retries=0)
    @slurm
    @step
    def work(self):
        self.task, self.attempt, self.pathspec = self.input, current.retry_count, current.pathspec
        print(f"TASK {self.task} of attempt {self.attempt} runs.", flush=True)
        if self.task in KILLED and not self.attempt:
            os.kill(os.getpid(), 9)
        while self.task in HELD and not os.path.exists("FOLDER/go"):
            time.sleep(0.1)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [[one.task, one.attempt, one.pathspec] for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("RESULT", json.dumps(self.found))

if __name__ == "__main__":
    FansOut()
"""


def fans_out(folder: object, tasks: int, retries: int = 0, killed: Sequence[int] = (), held: Sequence[int] = ()) -> str:
    """A foreach. Each task prints ``TASK i of attempt n runs.``; those ``killed`` get a SIGKILL in the first one, and
    those ``held`` wait for the file ``go`` in the folder. Its result is of each task its number, attempt and pathspec.
    """
    given = {"TASKS": tasks, "RETRIES": retries, "FOLDER": folder, "KILLED": killed, "HELD": held}
    text = _FANS_OUT
    for name, value in given.items():
        text = text.replace(name, str(value))
    return text
