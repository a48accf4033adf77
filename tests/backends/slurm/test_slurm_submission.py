"""A submission whose answer does not come in time: the job may be there nevertheless, and must not be there twice."""

from __future__ import annotations

from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

from metaflow_extensions.gang.backends.slurm import submission
from metaflow_extensions.gang.backends.slurm.attributes import read, with_defaults
from metaflow_extensions.gang.backends.slurm.client.commands import Commands
from metaflow_extensions.gang.backends.slurm.client.machine import Machine
from metaflow_extensions.gang.backends.slurm.job import Job

# What Slurm's commands print where the controller is busy: the first sbatch waits too long for an answer.
_SBATCH = """#!/bin/sh
cat >/dev/null
echo call >>{folder}/calls
if [ $(wc -l <{folder}/calls) -gt 1 ]; then echo 8; exit 0; fi
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
_SQUEUE = """#!/bin/sh
case "$*" in *--name=Flow/1/start/2/0*) cat {folder}/taken ;; esac
"""


@pytest.mark.parametrize(("taken", "number", "submissions"), [("7\n", "7", 1), ("", "8", 2)])
def test_a_job_is_not_submitted_again_where_slurm_has_taken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, number: str, submissions: int
) -> None:
    for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE)):
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "taken").write_text(taken)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(submission, "TRY_AGAIN_S", 0.0)
    job = Job("Flow/1/start/2/0", str(tmp_path), "python3", 1, read(with_defaults({})), ())
    said: list[str] = []
    slurm = Commands(Machine())
    assert submission.submit(slurm, job.submission(), lambda text, stream: said.append(text)) == number
    assert len((tmp_path / "calls").read_text().splitlines()) == submissions
    assert len(said) == 1 and "The submission is tried again" in said[0]
