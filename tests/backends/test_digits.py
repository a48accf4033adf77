"""A training on three nodes, on every backend; containers have nothing but Python and the framework."""

from __future__ import annotations

import json
import re
from pathlib import Path

import metaflow  # noqa: F401  (first: Metaflow loads the extensions' namespace)
import pytest

import metaflow_extensions.gang.core

from .flows import DIGITS, TRAIN
from .places import Places, everywhere
from .places import place as place
from .workplace import RUN_S, result
from .workplace import image as image

pytestmark = pytest.mark.slow


@everywhere("kubernetes")
def test_digits_are_learned_on_three_nodes(place: Places) -> None:
    workplace = place(3)
    run = workplace.start(DIGITS, train=TRAIN)
    hosts = [workplace.node(index, "", run).hostname for index in range(3)]
    run.ok(RUN_S)
    found, ours, beside, cards = result(run)
    assert [(one["rank"], one["world"]) for one in found] == [(0, 3), (1, 3), (2, 3)], run.dump()
    assert [one["host"] for one in found] == hosts
    assert all(one["right"] > 0.85 and one["right"] == found[0]["right"] for one in found)
    # The code package has all of ours and nothing else; Metaflow itself has put a file above it.
    installed = Path(metaflow_extensions.gang.core.__file__).parents[2]
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.suffix not in ("", ".pyc")}
    assert set(ours) - {"__init__.py"} == files
    assert {"flow.py", "train.py"} == {name for name in beside if name.endswith(".py")}
    # The card of the gang is that of the control task: Argo names it so, and elsewhere the others have longer ids.
    control = min(cards, key=lambda task: (not task.startswith("control"), len(task)))
    assert {task: [kind for kind, _ in those] for task, those in cards.items()} == {
        task: ["gang"] if task == control else [] for task in cards
    }
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', cards[control][0][1])[0])
    assert (data["state"], data["launcher"], len(data["nodes"])) == ("succeeded", "@torchrun", 3)
