"""The names that we add to ``metaflow``: every one in this module without two leading underscores, so import no others.

``__mf_extensions__`` and ``__version__`` are what Metaflow's banner says of us.
"""

from ..core.gang_log import gang_log
from ..core.version import VERSION as __version__  # noqa: F401 - what Metaflow's banner says of us
from ..launchers.horovod.run import horovod_run
from ..launchers.huggingface import lazy as huggingface_card_callback
from ..launchers.torchrun.single_node import TorchrunSingleNodeMultiGPU

__all__ = ["TorchrunSingleNodeMultiGPU", "gang_log", "horovod_run", "huggingface_card_callback"]
__mf_extensions__ = "gang"
