"""Messages of torch that another rank, or the store on rank 0, is gone: the rank that prints one is not the cause.

Each line was seen in the output of torch 2.13 (the samples are in the tests), those of NCCL as its users report them.
"""

from __future__ import annotations

_GLOO = r"gloo/transport/\w+/\w+\.cc:\d+\] "

RANK_PEER_LOST = (
    # A peer's process ended in the middle of a collective, or before it.
    _GLOO + r"(?:Read|Write) error \[[^\n]{0,100}\]:\d+: (?:Connection reset by peer|Broken pipe)",
    _GLOO + r"Connection closed by peer \[",
    # A peer is silent: it hangs, is stopped, or left without a word.
    _GLOO + r"Timed out waiting \d+ms for \w+ operation to complete",
    r"Rank \d+ failed to pass monitoredBarrier in \d+ ms",
    # Rank 0 holds the store and is gone, or never opened it; or a rank never came to it.
    r"torch\.distributed\.DistNetworkError: (?:Broken pipe|Connection reset by peer)",
    r"torch\.distributed\.DistNetworkError: Failed to recv, got 0 bytes\. Connection was likely closed",
    r"torch\.distributed\.DistNetworkError: The client socket has timed out after \d+ms while trying to connect to",
    r"torch\.distributed\.DistStoreError: Timed out after \d+ seconds waiting for clients\. \d+/\d+ clients joined",
    r"torch\.distributed\.DistStoreError: wait timeout after \d+ms, keys: ",
    # NCCL's watchdog, in C++, which then aborts the process: a collective that another rank did not take part in.
    r"\[Rank \d+\] Watchdog caught collective operation timeout: WorkNCCL\(",
    r"Received a dump signal due to a collective timeout from +rank \d+",
    r"NCCL communicator was aborted on rank \d+",
    r"NCCL error[^\n]{0,200}remote process exited or there was a network error",
    r"ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely",
)
"""For the output of a rank."""


def port_taken(port: int) -> str:
    """A regular expression for a rank that cannot open its store because another program has the port."""
    return (
        r"The server socket has failed to listen on any local network address\."
        rf"[^\n]{{0,200}}(?:\bport: {port}\b[^\n]{{0,200}}EADDRINUSE|:{port} \(errno: 98\b)"
    )
