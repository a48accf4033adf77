"""Runs a flow with a gang from a script, and reads what it has kept.

python examples/recipes/from_a_script.py
"""

import os

from metaflow import Runner

FLOW = os.path.join(os.path.dirname(os.path.abspath(__file__)), "foreach.py")

with Runner(FLOW).run() as running:
    assert running.status == "successful", running.stderr
    print("gangs:", running.run["best"].task["gangs"].data)
