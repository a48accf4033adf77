"""What is sent to AWS Batch, and what it answers, against the public model of its API."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.model import OperationModel


@functools.cache
def operations() -> dict[str, OperationModel]:
    """All operations of the service by their path, "/v1/submitjob"."""
    from botocore.session import Session

    service = Session().get_service_model("batch")
    found = [service.operation_model(name) for name in service.operation_names]
    return {operation.http["requestUri"]: operation for operation in found}


def check(shape: Any, value: Any) -> list[str]:
    """What is wrong with ``value``: other types, fields that the model lacks or wants, words that are none of its."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(value, shape)
    return [report.generate_report()] if report.has_errors() else _other_words(shape, value, shape.name)


def _other_words(shape: Any, value: Any, path: str) -> list[str]:
    """Values that are not among those that the model lists; botocore itself lets them pass."""
    parts: list[tuple[Any, Any, str]] = []
    if shape.type_name == "string" and shape.enum and value not in shape.enum:
        return [f"{path} is {value!r}, not one of {', '.join(shape.enum)}"]
    if shape.type_name == "structure":
        parts = [(shape.members[key], one, f"{path}.{key}") for key, one in value.items()]
    elif shape.type_name == "map":
        parts = [(shape.value, one, f"{path}.{key}") for key, one in value.items()]
    elif shape.type_name == "list":
        parts = [(shape.member, one, f"{path}[{number}]") for number, one in enumerate(value)]
    return [error for part in parts for error in _other_words(*part)]
