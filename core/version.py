"""The version of this package, which its distribution, Metaflow's banner and the nodes of a gang report."""

from __future__ import annotations

VERSION = "0.1.0"
