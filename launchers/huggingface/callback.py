"""The Trainer callback that feeds the cards of ``@huggingface_card``. Runs in the training's own processes."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ...core.gang_log import gang_log
from .card_file import DEFAULT_FILE_NAME, FILE_VARIABLE

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "MetaflowHuggingFaceCardCallback is a callback of Hugging Face's Trainer, and this environment has no package "
        'transformers. Add it with @pypi(packages={"transformers": "..."}), in the image of the step, or on your own '
        "machine with: pip install transformers."
    ) from error

_WRITING_SHARE = 20
"""A file is written again when this many times the last writing's duration has passed: it grows with the training, and
so never takes more than 5 % of its time."""


class MetaflowHuggingFaceCardCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Reports the progress of a Trainer to the cards of a step with ``@huggingface_card``, and to the gang's own card.

    Only the process of rank 0 writes; the others may have the callback too. Training never fails for want of a card:
    where the file cannot be written, one line on stderr reports it.

    Parameters
    ----------
    tracked_metrics : iterable of str, optional, default ("loss", "grad_norm")
        Which of the values that the Trainer logs become curves, in this order: "learning_rate", "eval_loss", ...
    save_file_name : path, optional
        The file to write. By default the one that the step names in METAFLOW_HF_CARD_SAVE_FILE_NAME.

    Example
    -------
    ``Trainer(..., callbacks=[MetaflowHuggingFaceCardCallback(["loss", "learning_rate", "eval_loss"])])``
    """

    def __init__(
        self,
        tracked_metrics: Iterable[str] | None = None,
        save_file_name: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(tracked_metrics, str):
            raise TypeError(f'tracked_metrics is a list of names, e.g. ["{tracked_metrics}"], not one name.')
        self.tracked_metrics = ["loss", "grad_norm"] if tracked_metrics is None else list(tracked_metrics)
        # Absolute: the training may change its working folder.
        self._path = os.path.abspath(save_file_name or os.environ.get(FILE_VARIABLE) or DEFAULT_FILE_NAME)
        self._metrics: dict[str, list[dict[str, float]]] = {}
        self._model_config: dict[str, Any] = {}
        self._configuration: dict[str, Any] = {}
        self._runtime_info: dict[str, Any] = {}
        self._next_write = 0.0  # of time.monotonic()
        self._warned = False

    # -- the Trainer's events ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The arguments are known; so are the curves up to here, where the training resumes from a checkpoint."""
        if not state.is_world_process_zero:
            return
        config = getattr(model, "config", None)  # only Hugging Face's own models have one
        self._model_config = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        self._configuration = args.to_dict()
        self._runtime_info = {
            "Processes": args.world_size,
            "Device": str(args.device),
            "Transformers": transformers.__version__,
            "Python": platform.python_version(),
        }
        self._metrics = {name: [] for name in self.tracked_metrics}
        for entry in state.log_history or ():
            self._add(entry, entry.get("step", 0))
        self._write(state, now=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """New points, and at the training's end how long it took."""
        if not state.is_world_process_zero or logs is None:
            return
        if added := self._add(logs, state.global_step):
            gang_log(state.global_step, **added)
        if logs.get("train_runtime"):
            flos = logs.get("total_flos", 0.0)
            self._runtime_info |= {
                "Train runtime": logs["train_runtime"],
                "Train samples / sec": logs.get("train_samples_per_second"),
                "Train steps / sec": logs.get("train_steps_per_second"),
                "Total Floating point operations": flos,
                "TFLOPs": flos / 1e12 / logs["train_runtime"],
            }
        self._write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last state, whatever was written a moment ago."""
        if state.is_world_process_zero:
            self._write(state, now=True)

    # -- the file ----------------------------------------------------------------------------------------------------

    def _add(self, logs: Mapping[str, Any], step: int) -> dict[str, float]:
        """Add a point to each curve that ``logs`` has a value of; those values."""
        found = {}
        for name in self.tracked_metrics:
            if name not in logs:
                continue
            try:
                found[name] = float(logs[name])  # a tensor or numpy's number, some of them
            except (TypeError, ValueError):
                continue
            self._metrics.setdefault(name, []).append({"step": step, "value": found[name]})
        return found

    def _write(self, state: Any, now: bool = False) -> None:
        started = time.monotonic()
        if not now and started < self._next_write:
            return
        content = {
            "metrics": {name: points for name, points in self._metrics.items() if points},
            "model_config": self._model_config,
            "trainer_configuration": self._configuration,
            "runtime_info": self._runtime_info,
            "training_state": {
                "epoch": state.epoch,
                "global_step": state.global_step,
                "max_steps": state.max_steps,
                "num_train_epochs": state.num_train_epochs,
            },
            "created_on": datetime.datetime.now().isoformat(),
        }
        # Whole or not at all: the step may read at any moment.
        unfinished = f"{self._path}.{os.getpid()}.tmp"
        try:
            with open(unfinished, "w") as file:
                json.dump(content, file, default=str, skipkeys=True)
            os.replace(unfinished, self._path)
        except (OSError, ValueError) as error:
            if not self._warned:
                print(f"The training's cards are not updated: {self._path} cannot be written: {error}", file=sys.stderr)
                self._warned = True
        ended = time.monotonic()
        self._next_write = ended + _WRITING_SHARE * (ended - started)
