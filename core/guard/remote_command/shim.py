"""What mpirun, and whatever else starts programs over SSH, runs for ssh: ``shim.py FOLDER [OPTION] HOST ARGUMENT ...``.

FOLDER has the socket of this node's guard (:mod:`.local_server`), which gets the command line and this program's
standard streams, and has the command run on the node that is called HOST, in its task's environment and folder. This
program exits with the command's exit code: 128 and the number of the signal that ended it; 255, with the reason on
stderr, where it could not be run or the connection broke. When this program ends first, the command is ended.

It starts once for each node, so it imports what Python has at hand: ``socket`` alone takes longer than all of this.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import array
import os
import sys

FAILED = 255


def main(folder: str, arguments: "list[str]") -> int:
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: nothing else must take its number
    os.close(fd)
    request = b"\0".join(map(os.fsencode, arguments))
    guard = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        os.chdir(folder)  # a socket's path has 107 bytes at most
        guard.connect("callers")
        streams = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
        guard.sendmsg([len(request).to_bytes(4, "big")], [streams])
        if request:  # for nothing the guard does not wait, and may have closed
            guard.sendall(request)
        answer = guard.recv(16)
        if answer:
            return int(answer)
        why = "it has ended"
    except OSError as error:
        why = str(error.strerror)
    os.write(2, f"[gang] The guard of this node cannot run a command on another: {why}.\n".encode())
    return FAILED


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2:]))
