"""Slurm's states and reasons, as `scontrol show job` prints them, and what they mean for users."""

from __future__ import annotations

import re
from dataclasses import dataclass

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")

ALIVE = (*PENDING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")

_NEVER = re.compile(
    r"PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|BadConstraints|AccountNotAllowed|QOSNotAllowed|InvalidAccount|InvalidQOS"
    r"|DependencyNeverSatisfied|JobHoldMaxRequeue|JobLaunchFailure|DeadLine"
    r"|(?:Assoc|QOS)(?:Max|Min)\w*PerJob\w*|QOSMin\w+|AssocMaxWallDurationPerJobLimit"
    r"|Job's_(?:account|QOS)_not_(?:known|permitted).*"
)
"""Reasons that do not go away while the job waits."""

_WHY_NEVER = {
    "PartitionTimeLimit": "it asks for more time than its partition has: lower @timeout or @slurm(time=...)",
    "PartitionNodeLimit": "it asks for more, or fewer, nodes than its partition has: see num_parallel",
    "PartitionConfig": "its partition has no node with what it asks for: see cpu, gpu and memory",
    "BadConstraints": "no node has what it asks for: see constraint, gpu, cpu and memory of @slurm",
    "AccountNotAllowed": "its account may not use the partition",
    "QOSNotAllowed": "its partition does not allow this qos",
}

_WHY_PENDING = {
    "Priority": "jobs of higher priority come first",
    "Resources": "it waits for nodes to become free",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "JobHeldUser": "it is held by its user: scontrol release lets it go",
    "JobHeldAdmin": "it is held by an administrator",
    "BeginTime": "its start time has not come",
    "Dependency": "it waits for another job",
    "Licenses": "it waits for a licence",
    "Reservation": "it waits for its reservation",
    "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions": (
        "nodes that it needs are down, drained or reserved"
    ),
}

_ENDS = {
    "TIMEOUT": "Slurm ended it at its time limit (@timeout, @slurm(time=...), or the partition's)",
    "OUT_OF_MEMORY": "a process of it used more memory than it asked for, and was killed: see @resources(memory=...)",
    "NODE_FAIL": "Slurm lost a node of it",
    "PREEMPTED": "Slurm preempted it for another job",
    "BOOT_FAIL": "a node of it could not be booted",
    "DEADLINE": "its deadline passed",
    "REVOKED": "another cluster of the federation has taken it",
}

_SIGNALS = {9: "SIGKILL", 15: "SIGTERM", 11: "SIGSEGV", 6: "SIGABRT", 7: "SIGBUS", 53: "a file system error"}


@dataclass(frozen=True)
class JobState:
    """What Slurm says about a job.

    Attributes
    ----------
    state : str
        Its JobState; "" where Slurm knows no such job.
    reason : str
        "" for none.
    exit_code : str
        STATUS:SIGNAL of its batch script.
    nodes : str
        Its nodes, as Slurm shortens them.
    """

    state: str
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more, as far as Slurm knows."""
        return self.state not in ALIVE

    @property
    def is_pending(self) -> bool:
        """Whether it waits for its start."""
        return self.state in PENDING


def parse_scontrol(line: str) -> JobState:
    """The output of ``scontrol --oneliner show job ID``."""

    def field(name: str) -> str:
        found = re.search(rf"(?:^| ){name}=(\S*)", line)
        value = found.group(1) if found else ""
        return "" if value in ("None", "(null)") else value

    state = field("JobState")
    if state == "FAILED" and field("PreemptTime"):
        state = "PREEMPTED"  # it heeded the signal, and ended by itself within the grace time
    return JobState(state, field("Reason"), field("ExitCode"), field("NodeList"))


def parse_squeue(output: str) -> dict[str, JobState]:
    """The output of ``squeue --noheader --array --format=%i|%T|%N|%r``, by the jobs' numbers."""
    found = {}
    for line in output.splitlines():
        job, state, nodes, reason = (*line.split("|", 3), "", "", "")[:4]
        # scontrol prints a reason without blanks.
        found[job] = JobState(state, "" if reason == "None" else reason.strip().replace(" ", "_"), "", nodes)
    return found


def parse_sacct(line: str) -> JobState:
    """The output of ``sacct -j ID -X -n -P -o State,Reason,ExitCode,NodeList``."""
    parts = [*line.strip().splitlines()[:1], ""][0].split("|")
    state, reason, code, nodes = (*parts, "", "", "", "")[:4]
    return JobState(state.split(" ")[0], "" if reason == "None" else reason, code, nodes)


def never_starts(job: JobState) -> str:
    """Why a pending job will not start by itself; "" where it may."""
    if not job.is_pending or not _NEVER.fullmatch(job.reason):
        return ""
    if job.reason.startswith("Job's_"):
        why = "see account and qos of @slurm"
    else:
        why = _WHY_NEVER.get(job.reason, "it exceeds a limit of its account or qos, or does not fit it")
    return f"would never start ({_in_words(job.reason)}): {why}"


def _in_words(reason: str) -> str:
    """A reason that is a sentence, which scontrol prints without blanks, as one; another one as it is."""
    return reason.replace("_", " ")


def progress(job: JobState) -> str:
    """What a user is told about a job that has not ended; "" for nothing new since its submission."""
    if job.is_pending:
        why = _WHY_PENDING.get(job.reason.partition(",")[0]) or _WHY_PENDING.get(job.reason)
        reason = _in_words(job.reason)
        because = f" ({reason}: {why})" if why else f" ({reason})" if reason else ""
        # What it waits for says that it waits: Slurm gives no reason before it has looked at the job.
        return f"is {job.state.lower().replace('_', ' ')}{because}" if because or job.state != "PENDING" else ""
    if job.state == "RUNNING":
        return f"runs on {job.nodes}"
    return f"is {job.state.lower().replace('_', ' ')}"


def end(job: JobState) -> str:
    """How a job ended that has not succeeded."""
    if job.state == "CANCELLED":
        return "was cancelled" + (f" ({job.reason})" if job.reason else "")
    if job.state in _ENDS:
        reason = f" ({job.reason})" if job.reason.upper() not in ("", job.state) else ""
        return f"ended as {job.state}{reason}: {_ENDS[job.state]}"
    status, _, number = job.exit_code.partition(":")
    if number.isdecimal() and int(number):
        how = f"was killed by {_SIGNALS.get(int(number), f'signal {number}')}"
    elif status.isdecimal() and int(status) > 128:
        how = f"ended with exit status {status} ({_SIGNALS.get(int(status) - 128, f'signal {int(status) - 128}')})"
    else:
        how = f"ended with exit status {status or '?'}"
    reason = f" (Slurm's reason: {job.reason})" if job.reason not in ("", "NonZeroExitCode") else ""
    return f"{how}{reason}"
