"""The messages of JAX where another node failed first."""

from __future__ import annotations

PEER_LOST = (
    r"Gloo .{0,100} failed: .{0,200}(Connection closed by peer|Connection reset|Socket closed|Timed out waiting)",
    r"JAX distributed service detected fatal errors",
    r"CoordinationService.{0,200}(heartbeat timeout|UNAVAILABLE)",
    r"remote process exited or there was a network error",  # NCCL
)
"""Regular expressions of these messages."""
