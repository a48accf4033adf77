"""What Metaflow finds here: our step decorators, by name and class."""

import sys

from ..core.metaflow_compat.version import allow_to_spin, too_old

STEP_DECORATORS_DESC = [
    ("deepspeed", "..launchers.deepspeed.decorator.DeepspeedDecorator"),
    ("gang", "..core.step.decorator.GangDecorator"),
    ("huggingface_card", "..launchers.huggingface.decorator.HuggingFaceCardDecorator"),
    ("jax", "..launchers.jax.decorator.JaxDecorator"),
    ("metaflow_ray", "..launchers.ray.decorator.RayDecorator"),
    ("mpi", "..launchers.mpi.decorator.MPIDecorator"),
    ("slurm", "..backends.slurm.decorator.SlurmDecorator"),
    ("tensorflow", "..launchers.tensorflow.decorator.TensorflowDecorator"),
    ("torchrun", "..launchers.torchrun.decorator.TorchrunDecorator"),
]

# `flow.py slurm step`: in place of a task, which older Metaflow does not tell from other commands.
TRAMPOLINE_CLIS_DESC = [("slurm", "..backends.slurm.cli.cli")]
CLIS_DESC = TRAMPOLINE_CLIS_DESC

if complaint := too_old():
    # An exception would have Metaflow go on without the plugins of all packages.
    print(complaint, file=sys.stderr)
    STEP_DECORATORS_DESC = TRAMPOLINE_CLIS_DESC = CLIS_DESC = []

allow_to_spin(name for name, _ in STEP_DECORATORS_DESC if name not in ("huggingface_card", "slurm"))

# As metaflow.plugins.NAME: what flows written for metaflow-deepspeed import.
__mf_promote_submodules__ = ["az_store", "deepspeed_libs", "hf_callbacks"]
