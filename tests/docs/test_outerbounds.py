"""Beside Outerbounds' distribution of Metaflow and its extensions: no file of theirs changes, and all work together."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from backends.image import Image
from checkouts import copy_of_checkout
from support.flows import flow_environment
from support.requirements import require_packages

LIMIT_S = 280.0

THEIRS = {"ob-metaflow": "2.19.39.1", "ob-metaflow-extensions": "1.6.35", "metaflow-checkpoint": "0.2.14"}

FLOW = """
import json, os
from metaflow import FlowSpec, checkpoint, current, model, retry, step, torchrun

def train(begin):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    assert dist.get_world_size() == 4
    return begin + dist.get_rank()

class Both(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @model
    @checkpoint
    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        begin = 0
        if current.checkpoint.is_loaded:
            with open(os.path.join(current.checkpoint.directory, "weights.json")) as file:
                begin = json.load(file)
        ranks = current.torch.run(entrypoint=train, entrypoint_args={"begin": begin})
        os.makedirs("saved", exist_ok=True)
        with open("saved/weights.json", "w") as file:
            json.dump(begin + 100, file)
        if current.gang.is_control:
            current.checkpoint.save("saved")
        current.gang.barrier()
        if current.retry_count == 0:
            raise RuntimeError("the first attempt ends here")
        if current.gang.is_control:
            self.ranks = ranks
            self.weights = current.model.save("saved", label="weights")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ranks, self.weights = inputs[0].ranks, inputs[0].weights
        self.next(self.end)

    @model(load="weights")
    @step
    def end(self):
        with open(os.path.join(current.model.loaded["weights"], "weights.json")) as file:
            print("RESULT", self.ranks, json.load(file))

if __name__ == "__main__":
    Both()
"""


def digests(site: Path) -> dict[str, str]:
    """What each file of their distributions holds, as installed."""
    found: dict[str, str] = {}
    for theirs in distributions(path=[str(site)]):
        if theirs.metadata["Name"] in THEIRS:
            found.update(_digests(theirs))
    return found


def _digests(installed: Distribution) -> dict[str, str]:
    paths = [Path(str(installed.locate_file(path))) for path in installed.files or () if path.suffix != ".pyc"]
    assert len(paths) > 10, "an install without a list of files"
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_no_file_of_theirs_changes_and_checkpoint_and_model_work_in_a_gang(tmp_path: Path) -> None:
    require_packages("torch")
    image = Image(tmp_path / "venv", "torch", "numpy", "boto3", "requests")
    python = image.folder / "bin" / "python"
    (site,) = image.folder.glob("lib/python3*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, *(f"{name}=={version}" for name, version in THEIRS.items())], check=True, timeout=LIMIT_S)
    before = digests(site)
    (tmp_path / "checkout").mkdir()
    subprocess.run([*pip, str(copy_of_checkout(tmp_path / "checkout"))], check=True, timeout=LIMIT_S)
    assert digests(site) == before
    (tmp_path / "flow.py").write_text(FLOW)
    env = flow_environment({"METAFLOW_HOME": str(tmp_path / "home"), "PATH": f"{python.parent}:{os.environ['PATH']}"})
    command = [str(python), "flow.py", "--datastore", "local", "--metadata", "local", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESULT [100, 101, 102, 103] 200" in done.stdout, done.stdout + done.stderr
