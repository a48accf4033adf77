"""Metaflow's metadata service, in memory, as far as a run and Metaflow's client ask it."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from support.hosts import Host

from .servers import JsonServer, Refused

_IDS = {"flows": "flow_id", "runs": "run_number", "steps": "step_name", "tasks": "task_id"}

_FIRST = {"runs": 8_100, "tasks": 93_710_000}
"""Where the service begins to count. Metaflow's client for Batch makes the other nodes' commands by replacing the
task's id in the whole command of node 0, and an id of a few digits may stand in there by chance."""


class MetadataService(JsonServer):
    """Objects by their path, "flows/F/runs/1/steps/S/tasks/2"; artifacts and metadata by their task's."""

    headers = {"METADATA_SERVICE_VERSION": "2.5.0"}

    def __init__(self, host: Host) -> None:
        self._objects: dict[str, dict[str, Any]] = {}
        self._artifacts: dict[str, list[dict[str, Any]]] = {}
        self._metadata: dict[str, list[dict[str, Any]]] = {}
        self._next = dict(_FIRST)
        self._lock = threading.Lock()
        super().__init__(host)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        parent, _, last = path.strip("/").rpartition("/")
        with self._lock:
            if method == "GET":
                return 200, self._get(parent, last, query)
            if method == "PATCH" and path.endswith("/tag/mutate"):
                return 200, self._tag(parent.removesuffix("/tag"), body)
            if method == "POST":
                return 200, self._post(parent, last, body)
        raise Refused(405, {"message": f"{method} {path} is not known"})

    # -- what is asked -------------------------------------------------------------------------------------------------

    def _get(self, parent: str, last: str, query: dict[str, list[str]]) -> Any:
        path = f"{parent}/{last}".strip("/")
        if path == "ping":
            return "pong"
        if path in self._objects:
            return self._objects[path]
        if last == "metadata":
            return [one for task, entries in self._metadata.items() if _within(task, parent) for one in entries]
        if last == "filtered_tasks":
            return self._filtered(f"{parent}/tasks", query)
        if "/artifacts" in path:
            return self._get_artifacts(path)
        if last in _IDS:
            return [one for key, one in reversed(self._objects.items()) if key.rpartition("/")[0] == path]
        raise Refused(404, {"message": f"{path} is not known"})

    def _filtered(self, tasks: str, query: dict[str, list[str]]) -> list[str]:
        field, pattern = query.get("metadata_field_name", [""])[0], query.get("pattern", [".*"])[0]
        found = []
        for key in self._objects:
            values = [str(one["value"]) for one in self._metadata.get(key, []) if field in ("", one["field_name"])]
            if key.rpartition("/")[0] == tasks and (not field or any(re.search(pattern, value) for value in values)):
                found.append("/".join(key.split("/")[1::2]))
        return found

    def _get_artifacts(self, path: str) -> Any:
        attempt = re.search(r"/attempt/(\d+)", path)
        parent, _, name = re.sub(r"/attempt/\d+", "", path).partition("/artifacts")
        found = []
        for task, artifacts in self._artifacts.items():
            if _within(task, parent):
                latest = max(one["attempt_id"] for one in artifacts)
                wanted = int(attempt.group(1)) if attempt else latest
                found += [one for one in artifacts if one["attempt_id"] == wanted]
        if not name:
            return found
        for one in found:
            if one["name"] == name.strip("/"):
                return one
        raise Refused(404, {"message": f"{path} is not known"})

    # -- what is told --------------------------------------------------------------------------------------------------

    def _post(self, parent: str, last: str, body: Any) -> Any:
        if last == "heartbeat":
            return '{"wait_time_in_seconds": 10}'  # text within JSON, as the service has it
        if last == "artifact":
            for one in body:
                one |= {"flow_id": parent.split("/")[1], "ts_epoch": _now(), "attempt_id": int(one["attempt_id"])}
            self._artifacts.setdefault(parent, []).extend(body)
            return {}
        if last == "metadata":
            self._metadata.setdefault(parent, []).extend(body)
            return {}
        return self._create(parent, last, body or {})

    def _create(self, parent: str, last: str, body: dict[str, Any]) -> dict[str, Any]:
        if f"{last}s" in _IDS and last not in ("flow", "step"):  # .../run, .../task: the id is in the body, or ours
            kind = f"{last}s"
            given = body.get(_IDS[kind])
            if given is None:
                given = self._next[kind] = self._next[kind] + 1
            key = f"{parent}/{kind}/{given}"
        else:  # flows/F; flows/F/runs/1/steps/S/step
            key = parent if last == "step" else f"{parent}/{last}"
        if key in self._objects:
            raise Refused(409, {"message": f"{key} is there already"})
        words = key.split("/")
        ids = {_IDS[kind]: name for kind, name in zip(words[::2], words[1::2], strict=True)}
        self._objects[key] = {"tags": [], "system_tags": [], **body, **ids, "ts_epoch": _now()}
        return self._objects[key]

    def _tag(self, key: str, body: dict[str, list[str]]) -> dict[str, list[str]]:
        found = self._objects[key]
        found["tags"] = sorted((set(found["tags"]) - set(body["tags_to_remove"])) | set(body["tags_to_add"]))
        return {"tags": found["tags"]}


def _within(path: str, parent: str) -> bool:
    return f"{path}/".startswith(f"{parent}/")


def _now() -> int:
    return int(time.time() * 1000)
