"""The exceptions of `@slurm`."""

from __future__ import annotations

from metaflow.exception import MetaflowException


class SlurmException(MetaflowException):  # type: ignore[misc]
    """A step cannot run on Slurm as it is written, or as the site is."""

    headline = "Slurm error"


class SlurmRefused(SlurmException):
    """Slurm refuses the job, or would never start it: another attempt would end the same way."""

    headline = "Slurm refuses the job"


class SlurmDoesNotAnswer(SlurmException):
    """A command of Slurm's, or the login node, does not answer now: the same may succeed later."""

    headline = "Slurm does not answer"


class SlurmJobFailed(SlurmException):
    """A job ended without success."""

    headline = "Slurm job failed"


class SlurmJobCancelled(SlurmException):
    """Somebody has cancelled a job. Only the end of the run keeps `@retry` from trying again, as on other backends."""

    headline = "Slurm job cancelled"
