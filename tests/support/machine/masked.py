"""``python masked.py WHAT PROGRAM ARG...``: run a program on a system that lacks something.

So does all that it starts. WHAT is "pidfd": no pidfd_open, as on kernels before 5.3 and under many filters of system
calls; or "all": neither that, nor /proc, nor a subreaper, nor a death signal, as elsewhere than on Linux; needs root.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_PIDFD_OPEN = 434
_PRCTL = {"x86_64": 157, "aarch64": 167}
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _EINVAL = 0x7FFF0000, 0x00050000, 22
_NUMBER, _FIRST_ARGUMENT = 0, 16
_NEW_MOUNTS, _PRIVATE, _RECURSIVE = 0x20000, 1 << 18, 1 << 14


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _filter(what: str) -> list[bytes]:
    refuse = _instruction(_RETURN, _REFUSE | _EINVAL)
    allow = _instruction(_RETURN, _ALLOW)
    if what == "pidfd":
        return [_instruction(_LOAD, _NUMBER), _instruction(_EQUAL, _PIDFD_OPEN, 1, 0), allow, refuse]
    return [
        _instruction(_LOAD, _NUMBER),
        _instruction(_EQUAL, _PIDFD_OPEN, 5, 0),
        _instruction(_EQUAL, _PRCTL[platform.machine()], 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_EQUAL, _PR_SET_PDEATHSIG, 2, 0),
        _instruction(_EQUAL, _PR_SET_CHILD_SUBREAPER, 1, 0),
        allow,
        refuse,
    ]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def main(what: str, argv: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    if what == "all":
        check(libc.unshare(_NEW_MOUNTS))
        check(libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None))
        check(libc.mount(b"none", b"/proc", b"tmpfs", 0, None))
    instructions = _filter(what)
    memory = ctypes.create_string_buffer(b"".join(instructions))
    program = _Program(len(instructions), ctypes.cast(memory, ctypes.c_void_p))
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
