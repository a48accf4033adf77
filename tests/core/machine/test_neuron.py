"""NeuronCores of Trainium and Inferentia, and ranks for them."""

from __future__ import annotations

from pathlib import Path

import metaflow  # noqa: F401 - before any import of the extension
import pytest

from metaflow_extensions.gang.core.attributes import read_nproc
from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.machine.neuron import neuron_cores


def machine(folder: Path, devices: int, core_count: str | None) -> dict[str, str]:
    """``devices`` that the container was given, and how many cores the driver says each has."""
    (folder / "dev").mkdir()
    (folder / "dev" / "neuronctl").touch()
    for number in range(devices):
        (folder / "dev" / f"neuron{number}").touch()
        if core_count is not None:
            entry = folder / "sys/devices/virtual/neuron_device" / f"neuron{number}"
            entry.mkdir(parents=True)
            (entry / "core_count").write_text(core_count)
    return {"dev": str(folder / "dev"), "sys": str(folder / "sys")}


@pytest.mark.parametrize(
    ("devices", "core_count", "environ", "cores"),
    [
        (16, "2\n", {}, 32),  # trn1.32xlarge
        (1, None, {}, 2),  # a driver that does not tell
        (1, "4\n", {}, 4),  # inf1
        (16, "8\n", {}, 64),  # trn2.48xlarge, whose cores are used two at a time
        (16, "8\n", {"NEURON_LOGICAL_NC_CONFIG": "1"}, 128),
        (16, "8\n", {"NEURON_RT_VIRTUAL_CORE_SIZE": "1"}, 128),
        (16, "2\n", {"NEURON_RT_VISIBLE_CORES": "0-7"}, 8),
        (16, "2\n", {"NEURON_RT_VISIBLE_CORES": "0-3, 9,12-13"}, 7),
        (16, "2\n", {"NEURON_RT_VISIBLE_CORES": "all"}, 32),
        (16, "2\n", {"NEURON_RT_NUM_CORES": "4"}, 4),
        (16, "2\n", {"NEURON_RT_NUM_CORES": "0"}, 32),  # which means all
        (0, None, {"NEURON_RT_NUM_CORES": "4"}, 0),
        (1, "what\n", {}, 2),
    ],
)
def test_cores_are_counted(
    tmp_path: Path, devices: int, core_count: str | None, environ: dict[str, str], cores: int
) -> None:
    assert neuron_cores(environ, **machine(tmp_path, devices, core_count)) == cores


def test_no_folder_of_devices(tmp_path: Path) -> None:
    assert neuron_cores({}, str(tmp_path / "dev"), str(tmp_path / "sys")) == 0


def test_a_rank_for_each_core_where_there_is_no_gpu() -> None:
    assert read_nproc("auto", 0, 96, 32) == 32
    assert read_nproc("auto", 8, 96, 32) == 8
    assert read_nproc("auto", 0, 96, 0) == 1
    assert read_nproc("cpu", 0, 96, 32) == 96
    with pytest.raises(BadAttribute, match="no GPU"):
        read_nproc("gpu", 0, 96, 32)
