"""The gang: forms it, watches it, ends it. No launcher is named in here."""

from importlib.util import find_spec

_metaflow = find_spec("metaflow")
if _metaflow is None or _metaflow.origin is None:  # our own file of types for editors is in a folder of that name
    # Metaflow is no dependency of the package: Outerbounds' build of it, ob-metaflow, would be overwritten by it.
    raise ImportError("metaflow-gang needs Metaflow, and there is none here: pip install metaflow.", name="metaflow")
