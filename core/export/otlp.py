"""Exports the metrics of one node by OpenTelemetry (OTLP); run as a program beside the node's guard.

A program, since OpenTelemetry's packages take half a second to import, and a collector may be slow: neither the task
nor its guard waits for it.

    python otlp.py '{"metaflow.flow": "Train", ...}'

The argument has the attributes of the resource. Each line of the standard input has the newest metrics, JSON: in
``points`` name, kind, unit, description, value and attributes of each, and in ``final`` whether no other line will
come. What is wrong is written to the standard error, one line each.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

END_MS = 2000
"""For the last export, within what the guard waits."""

SERVICE = "metaflow-gang"

_PROTOCOLS = {"http/protobuf": "http", "grpc": "grpc"}


class Complaints(logging.Handler):
    """Writes the first line of what OpenTelemetry logs."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def complain(text: str) -> None:
    """Write one line for the guard, which has it in its task's log."""
    os.write(2, f"{' '.join(text.split())}\n".encode(errors="replace"))


def exporter(environ: Mapping[str, str]) -> Any:
    """The exporter of the protocol that the environment names, else of the one that is installed.

    Raises ValueError for an unknown protocol, and ImportError where its package is missing.
    """
    names = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    wanted = next((environ[name] for name in names if environ.get(name)), "")
    if wanted and wanted not in _PROTOCOLS:
        raise ValueError(f"the protocol {wanted} is none of {' and '.join(_PROTOCOLS)}")
    for protocol in (wanted,) if wanted else _PROTOCOLS:
        kind = _PROTOCOLS[protocol]
        try:
            module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.metric_exporter")
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("opentelemetry"):
                raise
        else:
            return module.OTLPMetricExporter()
    raise ImportError(f"opentelemetry-exporter-otlp-proto-{_PROTOCOLS[wanted] if wanted else 'http'} is not installed")


class Instruments:
    """OpenTelemetry's instruments, one for each metric that has come, which give its newest values."""

    def __init__(self, meter: Any, observation: Any) -> None:
        self._observation = observation
        self._create = {
            "gauge": meter.create_observable_gauge,
            "counter": meter.create_observable_counter,
            "updown": meter.create_observable_up_down_counter,
        }
        self._known: set[str] = set()
        self._newest: dict[str, list[tuple[float, dict[str, Any]]]] = {}

    def take(self, points: list[list[Any]]) -> None:
        """These are the newest values of all metrics."""
        newest: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for name, _, _, _, value, attributes in points:
            newest.setdefault(name, []).append((value, attributes))
        self._newest = newest
        for name, kind, unit, text, *_ in points:
            if name not in self._known:
                self._known.add(name)
                read = lambda options, name=name: self._read(name)  # noqa: E731
                self._create[kind](name, callbacks=[read], unit=unit, description=text)

    def _read(self, name: str) -> list[Any]:
        return [self._observation(value, attributes) for value, attributes in self._newest.get(name, ())]


def run(resource: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Export what comes by the standard input until that ends."""
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        resource["service.name"] = SERVICE
    # What the user has set is not replaced.
    own = {name: value for name, value in resource.items() if f"{name}=" not in given}
    reader = PeriodicExportingMetricReader(exporter(environ))
    provider = MeterProvider([reader], Resource.create(own), shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("metaflow-gang"), Observation)
    rest, is_last = b"", False
    while not is_last and (piece := os.read(0, 1 << 20)):
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            newest = json.loads(lines[-1])
            instruments.take(newest["points"])
            is_last = newest["final"]
    provider.shutdown(timeout_millis=END_MS)


def main(argument: str) -> None:
    """Run, and write what goes wrong as one line."""
    logging.getLogger().addHandler(Complaints(logging.WARNING))
    try:
        run(json.loads(argument), os.environ)
    except Exception as error:
        complain(f"{type(error).__name__}: {error}")
    # Threads of OpenTelemetry may still wait for a collector.
    os._exit(0)


if __name__ == "__main__":
    del sys.path[0]  # this folder, which has modules of ours
    main(sys.argv[1])
