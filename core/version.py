"""The version of this package, which its distribution, Metaflow's banner and the nodes of a gang tell."""

from __future__ import annotations

VERSION = "0.1.0"
