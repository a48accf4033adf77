"""The gang: forms it, watches it, ends it. No launcher is named in here."""

from importlib.util import find_spec

if find_spec("metaflow") is None:
    # Metaflow is no dependency of the package: Outerbounds' build of it, ob-metaflow, would be overwritten by it.
    raise ImportError("metaflow-gang needs Metaflow, and there is none here: pip install metaflow.", name="metaflow")
