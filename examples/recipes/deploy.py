"""Gives a flow with a gang to Argo Workflows, and starts a run of it there.

python examples/recipes/deploy.py --dry    # shows what Argo would get, and asks no cluster
python examples/recipes/deploy.py
"""

import os
import sys

from metaflow import Deployer

FLOW = os.path.join(os.path.dirname(os.path.abspath(__file__)), "deployed.py")

argo = Deployer(FLOW, show_output=False).argo_workflows()
if "--dry" in sys.argv:
    template = argo.create(only_json=True).workflow_template
    for one in template["spec"]["templates"]:
        if "resource" in one:
            print(f"{one['name']} is a JobSet, started at most {int(one['retryStrategy']['limit']) + 1} times:")
            print(one["resource"]["manifest"])
else:
    triggered = argo.create().trigger(rate=0.5)
    run = triggered.wait_for_run(timeout=600)
    print(f"{run.pathspec} has begun; its logs: python {FLOW} logs {run.id}/train")
