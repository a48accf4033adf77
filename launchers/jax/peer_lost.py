"""How JAX says that it is not to blame: what a process prints when another node is gone."""

from __future__ import annotations

PEER_LOST = (
    r"Gloo .{0,100} failed: .{0,200}(Connection closed by peer|Connection reset|Socket closed|Timed out waiting)",
    r"JAX distributed service detected fatal errors",
    r"CoordinationService.{0,200}(heartbeat timeout|UNAVAILABLE)",
    r"remote process exited or there was a network error",  # NCCL
)
"""What JAX says where another node went first."""
