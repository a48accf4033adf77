"""``python -m metaflow_extensions.gang.cli``: the command ``metaflow-gang``, where that is not on the PATH."""

from .main import main

main()
