"""The flow that befalls things on Slurm."""

from __future__ import annotations

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
        self.job = os.environ["SLURM_JOB_ID"]
        current.gang.barrier()
        print("AT WORK", flush=True)
        if current.retry_count == 0:
            current.gang.run([sys.executable, "-c", "import time; time.sleep(FIRST_S)"])
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


def works(folder: object, nodes: int = 3, options: str = "", retries: int = 0, first_s: float = 1000) -> str:
    """A gang whose nodes wait in their first attempt for what befalls them, and save where they are told to end.

    Its result is what each node of the last attempt has found saved.

    Parameters
    ----------
    folder : path
        For what is saved.
    options : str
        Of ``@slurm``.
    retries : int
        Of ``@retry``.
    first_s : float
        Seconds that a rank of the first attempt takes.
    """
    given = {"NODES": nodes, "OPTIONS": options, "RETRIES": retries, "FOLDER": folder, "FIRST_S": f"{first_s:g}"}
    text = _WORKS
    for name, value in given.items():
        text = text.replace(name, str(value))
    return text
