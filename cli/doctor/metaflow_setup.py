"""What of Metaflow's configuration gangs need: the datastore, the metadata service, and the backends."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from metaflow import metaflow_config

from ...backends.slurm.attributes import with_defaults
from ...core.metaflow_compat.configuration import configured
from ...core.metaflow_compat.datastores import configured_root, storages
from .findings import BROKEN, MISSING, NOT_NEEDED, OK, Finding

METAFLOW, BACKENDS = "Metaflow's configuration", "Backends"

LOOKUP_S = 15.0
"""For one look at a service, the start of Python and of its client included."""

PING_S = 5.0
"""For Slurm's controller."""

LONGEST_NAMESPACE, LONGEST_UNDER_ARGO = 14, 12
"""Characters of a Kubernetes namespace: docs/backends.md has the pods' names, which Linux limits to 64."""

_OF_KUBERNETES = ("KUBERNETES_NAMESPACE", "KUBERNETES_SERVICE_ACCOUNT", "KUBERNETES_CONTAINER_IMAGE")
"""Settings of which one is there where Metaflow is configured for Kubernetes. Many a machine has a ~/.kube/config."""

SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")


def services() -> list[Finding]:
    """The datastore, the metadata, AWS Batch and Kubernetes: those that are configured are asked, all at once."""
    asked = {
        "datastore": metaflow_config.DEFAULT_DATASTORE != "local",
        "metadata": metaflow_config.DEFAULT_METADATA == "service",
        "batch": bool(metaflow_config.BATCH_JOB_QUEUE),
        "kubernetes": _has_cluster(os.environ),
    }
    running = {name: _start(name) for name, is_asked in asked.items() if is_asked}
    answers = {name: _answer(process) for name, process in running.items()}
    return [
        _datastore(answers.get("datastore")),
        _metadata(answers.get("metadata")),
        _batch(answers.get("batch")),
        *_kubernetes(answers.get("kubernetes")),
    ]


def _has_cluster(environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes's client finds a cluster: a file that names one, or the one that this process is in."""
    named = environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    return "KUBERNETES_SERVICE_HOST" in environ or any(map(os.path.exists, named.split(os.pathsep)))


def _start(name: str) -> subprocess.Popen[str]:
    # A process of its own: clients try again for minutes, and cannot be told not to.
    argv = [sys.executable, "-m", f"{__package__}.lookup", name]
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _answer(process: subprocess.Popen[str]) -> tuple[bool, str]:
    """Whether the service answers as it should, and what it says."""
    with process:
        try:
            output, _ = process.communicate(timeout=LOOKUP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return False, f"no answer within {LOOKUP_S:g} s"
    try:
        is_well, said = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return False, f"the check of it ended with code {process.returncode}"
    return bool(is_well), str(said)


def _datastore(answer: tuple[bool, str] | None) -> Finding:
    kind = metaflow_config.DEFAULT_DATASTORE
    if kind not in storages():
        advice = f"METAFLOW_DEFAULT_DATASTORE has to be one of {', '.join(sorted(storages()))}."
        return Finding(METAFLOW, "datastore", BROKEN, kind, advice)
    root = configured_root(storages()[kind])
    if answer is None:
        advice = (
            "It is enough for local gangs. Gangs on AWS Batch or Kubernetes need s3, azure or gs (metaflow configure)."
        )
        return Finding(METAFLOW, "datastore", OK, f"local, {root or 'a folder .metaflow beside the flow'}", advice)
    is_well, said = answer
    if is_well:
        return Finding(METAFLOW, "datastore", OK, f"{kind}, {root}")
    advice = f"Look at METAFLOW_DATASTORE_SYSROOT_{kind.upper()} and at the credentials of this shell."
    return Finding(METAFLOW, "datastore", BROKEN, f"{kind}, {root}: {said}", advice)


def _metadata(answer: tuple[bool, str] | None) -> Finding:
    if answer is None:
        advice = "It is enough for local gangs, Kubernetes and Slurm. AWS Batch and Argo need a metadata service."
        return Finding(METAFLOW, "metadata", OK, str(metaflow_config.DEFAULT_METADATA), advice)
    is_well, said = answer
    found = f"service, {metaflow_config.SERVICE_URL}: {said}"
    return Finding(
        METAFLOW, "metadata", OK if is_well else BROKEN, found, "" if is_well else "Look at METAFLOW_SERVICE_URL."
    )


def _batch(answer: tuple[bool, str] | None) -> Finding:
    if answer is None:
        return Finding(BACKENDS, "AWS Batch", NOT_NEEDED, "no METAFLOW_BATCH_JOB_QUEUE")
    is_well, said = answer
    advice = "" if is_well else "Look at METAFLOW_BATCH_JOB_QUEUE, the region, and the credentials of this shell."
    found = f"queue {metaflow_config.BATCH_JOB_QUEUE}: {said}"
    return Finding(BACKENDS, "AWS Batch", OK if is_well else BROKEN, found, advice)


def _kubernetes(answer: tuple[bool, str] | None) -> list[Finding]:
    if answer is None:
        return [Finding(BACKENDS, "Kubernetes", NOT_NEEDED, "no cluster is configured (KUBECONFIG, ~/.kube/config)")]
    is_well, said = answer
    if not is_well and not any(configured(name) for name in _OF_KUBERNETES):
        return [Finding(BACKENDS, "Kubernetes", NOT_NEEDED, f"{said}; Metaflow is not configured for it")]
    advice = "" if is_well else "A gang needs a cluster that answers, with the JobSet controller (jobset.sigs.k8s.io)."
    name = metaflow_config.KUBERNETES_NAMESPACE
    found = f"{name}, {len(name)} characters"
    state, what = OK, ""
    if len(name) > LONGEST_NAMESPACE:
        state, what = BROKEN, f"Pods of a gang never start in it: it may have {LONGEST_NAMESPACE} characters."
    elif len(name) > LONGEST_UNDER_ARGO:
        what = f"Under Argo Workflows it may have {LONGEST_UNDER_ARGO} characters."
    return [
        Finding(BACKENDS, "Kubernetes", OK if is_well else BROKEN, said, advice),
        Finding(BACKENDS, "namespace", state, found, what),
    ]


def slurm() -> list[Finding]:
    """Slurm's commands, and whether its controller answers."""
    lacking = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    login = with_defaults({})["login"]
    if login:
        ssh = shutil.which("ssh")
        found = f"on the login node {login}" + ("" if ssh else ", and there is no ssh")
        return [Finding(BACKENDS, "Slurm", OK if ssh else MISSING, found, "" if ssh else "Install openssh-client.")]
    if len(lacking) == len(SLURM_COMMANDS):
        return [Finding(BACKENDS, "Slurm", NOT_NEEDED, "none of its commands, and no METAFLOW_SLURM_LOGIN")]
    if lacking:
        advice = "Install all of Slurm's client commands (Debian: slurm-client)."
        return [Finding(BACKENDS, "Slurm", BROKEN, f"no {', '.join(lacking)}", advice)]
    advice = "Its controller has to answer (scontrol ping): look at slurm.conf (SLURM_CONF), munge, and slurmctld."
    try:
        asked = subprocess.run(
            ["scontrol", "ping"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PING_S
        )
    except subprocess.TimeoutExpired:
        return [Finding(BACKENDS, "Slurm", BROKEN, f"no answer within {PING_S:g} s", advice)]
    said = (asked.stdout + asked.stderr).strip().partition("\n")[0]
    if re.search(r"\bis UP\b", said):
        return [Finding(BACKENDS, "Slurm", OK, said)]
    if not os.environ.get("SLURM_CONF") and not glob.glob("/etc/slurm*/slurm.conf"):
        return [Finding(BACKENDS, "Slurm", NOT_NEEDED, "its commands, without a cluster: there is no slurm.conf")]
    return [Finding(BACKENDS, "Slurm", BROKEN, said or f"scontrol ping ended with code {asked.returncode}", advice)]
