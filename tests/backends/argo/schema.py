"""What Metaflow makes of a flow, against the public model of WorkflowTemplates."""

from __future__ import annotations

import json
from typing import Any

from ..kubernetes.schema import unread


def check(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with it: values of another type, fields that the model lacks."""
    from hera.workflows.models import WorkflowTemplate  # not where the tests that use it are skipped

    try:
        read = WorkflowTemplate.model_validate(manifest)
    except ValueError as error:  # pydantic's is one
        return [str(error)]
    shown = json.loads(read.model_dump_json(by_alias=True, exclude_none=True))
    return [f"the public model has no {path}" for path in unread(manifest, shown, "")]
