"""What Metaflow finds here: our step decorators, by name and class."""

STEP_DECORATORS_DESC = [
    ("gang", "..core.decorator.GangDecorator"),
    ("mpi", "..launchers.mpi.decorator.MPIDecorator"),
    ("torchrun", "..launchers.torchrun.decorator.TorchrunDecorator"),
]
