"""NVIDIA GPUs by the driver's library NVML, through ctypes: nothing is loaded where the driver has no device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loop.framing import Header

LIBRARY = "libnvidia-ml.so.1"

_XID_EVENT = 0x8
"""nvmlEventTypeXidCriticalError of nvml.h; ..."""

_UNCORRECTED, _VOLATILE = 1, 0
"""... NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC: since the driver was loaded."""


def is_there() -> bool:
    """Whether the driver has a device here."""
    return os.path.exists("/dev/nvidiactl")


class Nvml:
    """The GPUs that the library shows. Raises OSError where there is none, or it cannot be used."""

    def __init__(self, library: str = LIBRARY) -> None:
        import ctypes

        self._c = ctypes

        class Utilization(ctypes.Structure):
            _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))

        class Memory(ctypes.Structure):
            _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))

        class Event(ctypes.Structure):
            _fields_ = (
                ("device", ctypes.c_void_p),
                ("type", ctypes.c_ulonglong),
                ("data", ctypes.c_ulonglong),
                ("instance", ctypes.c_uint),
                ("compute", ctypes.c_uint),
            )

        self._utilization, self._memory, self._event = Utilization, Memory, Event
        self._library = ctypes.CDLL(library)
        if self._call("nvmlInit_v2"):
            raise OSError("NVML cannot be used here")
        count = ctypes.c_uint()
        if self._call("nvmlDeviceGetCount_v2", ctypes.byref(count)):
            raise OSError("NVML does not count the GPUs")
        self._devices = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if not self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device)):
                self._devices.append(device)
        self._xids: dict[int, int] = {}
        self._events = ctypes.c_void_p()
        self._has_events = not self._call("nvmlEventSetCreate", ctypes.byref(self._events))
        for device in self._devices if self._has_events else ():
            self._call("nvmlDeviceRegisterEvents", device, ctypes.c_ulonglong(_XID_EVENT), self._events)

    def _call(self, name: str, *arguments: Any) -> int:
        """The function's result, which is 0 where it has done what it is for."""
        function = getattr(self._library, name, None)  # an older driver lacks some
        return -1 if function is None else int(function(*arguments))

    def _take_events(self) -> None:
        event = self._event()
        for _ in range(16):
            code = self._call("nvmlEventSetWait_v2", self._events, self._c.byref(event), self._c.c_uint(0))
            if code or not event.type & _XID_EVENT:
                return
            self._xids[event.device] = event.data

    def sample(self) -> list[Header]:
        """Of each GPU: ``util`` and ``memory_util`` (percent of the time in which it computed, and in which its memory
        was used), ``memory`` and ``total`` (bytes), ``power`` (watts), ``ecc`` (uncorrected errors since the driver was
        loaded) and ``xid`` (the last such error since the gang began); None for what the driver does not report.
        """
        c, found = self._c, []
        if self._has_events:
            self._take_events()
        for device in self._devices:
            use, memory, power, ecc = self._utilization(), self._memory(), c.c_uint(), c.c_ulonglong()
            has_use = not self._call("nvmlDeviceGetUtilizationRates", device, c.byref(use))
            has_memory = not self._call("nvmlDeviceGetMemoryInfo", device, c.byref(memory))
            has_power = not self._call("nvmlDeviceGetPowerUsage", device, c.byref(power))
            kind = (c.c_uint(_UNCORRECTED), c.c_uint(_VOLATILE))
            has_ecc = not self._call("nvmlDeviceGetTotalEccErrors", device, *kind, c.byref(ecc))
            found.append(
                {
                    "util": use.gpu if has_use else None,
                    "memory_util": use.memory if has_use else None,
                    "memory": memory.used if has_memory else None,
                    "total": memory.total if has_memory else None,
                    "power": round(power.value / 1000, 1) if has_power else None,
                    "ecc": ecc.value if has_ecc else None,
                    "xid": self._xids.get(device.value or 0),
                }
            )
        return found
