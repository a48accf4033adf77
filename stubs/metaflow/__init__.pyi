"""Metaflow for type checkers and editors, with metaflow-gang's part. Made by `make docs` of the code."""

from typing import Any

from . import cards as cards
from . import tuple_util as tuple_util
from ._gang import TorchrunSingleNodeMultiGPU as TorchrunSingleNodeMultiGPU
from ._gang import current as current
from ._gang import deepspeed as deepspeed
from ._gang import gang as gang
from ._gang import gang_log as gang_log
from ._gang import horovod_run as horovod_run
from ._gang import huggingface_card as huggingface_card
from ._gang import huggingface_card_callback as huggingface_card_callback
from ._gang import jax as jax
from ._gang import metaflow_ray as metaflow_ray
from ._gang import mpi as mpi
from ._gang import slurm as slurm
from ._gang import tensorflow as tensorflow
from ._gang import torchrun as torchrun
from .client import DataArtifact as DataArtifact
from .client import Flow as Flow
from .client import Metaflow as Metaflow
from .client import Run as Run
from .client import Step as Step
from .client import Task as Task
from .client import default_metadata as default_metadata
from .client import default_namespace as default_namespace
from .client import get_metadata as get_metadata
from .client import get_namespace as get_namespace
from .client import inspect_spin as inspect_spin
from .client import metadata as metadata
from .client import namespace as namespace
from .decorators import step as step
from .flowspec import FlowSpec as FlowSpec
from .includefile import IncludeFile as IncludeFile
from .metaflow_profile import profile as profile
from .multicore_utils import parallel_imap_unordered as parallel_imap_unordered
from .multicore_utils import parallel_map as parallel_map
from .parameters import JSONType as JSONType
from .parameters import JSONTypeClass as JSONTypeClass
from .parameters import Parameter as Parameter
from .plugins.datatools import S3 as S3
from .runner.deployer import DeployedFlow as DeployedFlow
from .runner.deployer import Deployer as Deployer
from .runner.metaflow_runner import Runner as Runner
from .runner.nbdeploy import NBDeployer as NBDeployer
from .runner.nbrun import NBRunner as NBRunner
from .user_configs.config_parameters import Config as Config
from .user_configs.config_parameters import ConfigValue as ConfigValue
from .user_decorators.user_flow_decorator import FlowMutator as FlowMutator
from .user_decorators.user_step_decorator import StepMutator as StepMutator
from .user_decorators.user_step_decorator import USER_SKIP_STEP as USER_SKIP_STEP
from .user_decorators.user_step_decorator import UserStepDecorator as UserStepDecorator
from .user_decorators.user_step_decorator import user_step_decorator as user_step_decorator

__version__: str

# Any, as a value of a configuration stands for any attribute's: @torchrun(nproc_per_node=config_expr("config.gpus")).
def config_expr(expr: str) -> Any: ...

# What Metaflow makes as it is imported: its own decorators, and the names of other extensions.
def __getattr__(name: str) -> Any: ...
