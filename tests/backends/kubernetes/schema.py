"""What Metaflow sends, against the public models of Jobs and JobSets."""

from __future__ import annotations

from typing import Any

_MODELS = {"jobs": "IoK8sApiBatchV1Job", "jobsets": "JobsetV1alpha2JobSet"}


def check(kind: str, body: dict[str, Any]) -> list[str]:
    """What is wrong with an object that is to be created: values of another type, fields that the model lacks."""
    from kubeflow_trainer_api import models  # not where the tests that use it are skipped

    try:
        read = getattr(models, _MODELS[kind]).from_dict(body).to_dict()
    except ValueError as error:  # pydantic's is one
        return [f"{kind}: {error}"]
    return [f"{kind}: the public model has no {path}" for path in unread(body, read, "")]


def unread(sent: Any, read: Any, path: str) -> list[str]:
    """Paths of what was sent and is not in what the model read; None and what is empty mean "not given"."""
    if isinstance(sent, dict):
        found = []
        for name, value in sent.items():
            below = f"{path}.{name}".lstrip(".")
            if value is None or value == {} or value == []:
                continue
            if not isinstance(read, dict) or name not in read:
                found.append(below)
            else:
                found += unread(value, read[name], below)
        return found
    if isinstance(sent, list) and isinstance(read, list):
        return [
            one
            for number, (a, b) in enumerate(zip(sent, read, strict=False))
            for one in unread(a, b, f"{path}[{number}]")
        ]
    return []
