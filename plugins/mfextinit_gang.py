"""What Metaflow finds here: our step decorators, by name and class."""

STEP_DECORATORS_DESC = [
    ("deepspeed", "..launchers.deepspeed.decorator.DeepspeedDecorator"),
    ("gang", "..core.decorator.GangDecorator"),
    ("huggingface_card", "..launchers.huggingface.decorator.HuggingFaceCardDecorator"),
    ("jax", "..launchers.jax.decorator.JaxDecorator"),
    ("metaflow_ray", "..launchers.ray.decorator.RayDecorator"),
    ("mpi", "..launchers.mpi.decorator.MPIDecorator"),
    ("tensorflow", "..launchers.tensorflow.decorator.TensorflowDecorator"),
    ("torchrun", "..launchers.torchrun.decorator.TorchrunDecorator"),
]

# As metaflow.plugins.NAME: what flows written for metaflow-deepspeed import.
__mf_promote_submodules__ = ["az_store", "deepspeed_libs", "hf_callbacks"]
