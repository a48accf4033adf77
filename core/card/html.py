"""The page of the card: its data, style and script in one file without outside resources."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from typing import Any

LIVE, FINAL = "gang", "final"
"""What Metaflow's viewers compare between the page and its data: with the same word the page takes new data as they
come; a different one makes them load the page again, and ``FINAL`` ends their questions."""

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")


def page(snapshot: Mapping[str, Any], token: str = LIVE) -> str:
    """The whole page.

    Parameters
    ----------
    snapshot : dict
        What it shows: see the test's sample, tests/core/card/card_sample.py, for its form.
    token : str
        :data:`LIVE` or :data:`FINAL`.
    """
    parts = {
        "TITLE": html.escape(f"{snapshot['launcher']} of {snapshot['pathspec']}"),
        "STYLE": _file("card.css"),
        "SCRIPT": _file("charts.js") + _file("card.js"),
        "TOKEN": token,
        "DATA": script_text(snapshot),
    }
    text = _file("card.html")
    for name, value in parts.items():
        text = text.replace(f"@@{name}@@", value, 1)
    return text


def live_data(snapshot: Mapping[str, Any], token: str = LIVE) -> dict[str, Any]:
    """What Metaflow's viewers fetch every few seconds and give to the page's ``metaflow_card_update``."""
    return {"reload_token": token, "data": snapshot}


def script_text(value: Any) -> str:
    """JSON that can stand in a page's script: nothing in it ends the script, or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")


def _file(name: str) -> str:
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
        return file.read()
