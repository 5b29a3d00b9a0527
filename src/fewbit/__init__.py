"""fewbit stores and computes trained neural networks in fewer bits and shows what that cost.

import fewbit as fb

result = fb.quantize(model, "w4a16")
result.report.save("report.html")
result.save("out/")
"""

from fewbit.algorithms.adaround import AdaRound
from fewbit.algorithms.autoround import AutoRound
from fewbit.algorithms.brecq import Brecq
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.hqq import Hqq
from fewbit.algorithms.nearest import Nearest
from fewbit.allocation.allocation import Allocation
from fewbit.allocation.allocator import allocate
from fewbit.allocation.budget import Budget
from fewbit.allocation.sensitivity import Sensitivity, sensitivity
from fewbit.calibration import Calibration
from fewbit.conversion import convert
from fewbit.errors import FewbitError
from fewbit.formats.codebook import Codebook
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import Float
from fewbit.importance import importance_matrix
from fewbit.measurement import Evaluation
from fewbit.options import Options
from fewbit.pipeline import load, plan, quantize
from fewbit.qtensor import QTensor
from fewbit.recipe import Recipe
from fewbit.report.conversion import Conversion
from fewbit.report.data import Report
from fewbit.result import Result
from fewbit.rule import Rule, keep
from fewbit.samples.files import Samples
from fewbit.samples.preprocessing import Preprocessing
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor, PerTile, PerToken
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme
from fewbit.streaming import quantize_folder
from fewbit.synthetic.options import Synthetic
from fewbit.training.adapters import Adapters, load_adapters, merge_adapters, prepare_adapters, save_adapters
from fewbit.training.level_distance import level_distance
from fewbit.training.memory import training_memory
from fewbit.training.options import Training
from fewbit.training.parameter_groups import parameter_groups
from fewbit.training.qat import finish_qat, plan_qat, prepare_qat

__version__ = "0.1.0"

__all__ = [
    "AdaRound",
    "Adapters",
    "Allocation",
    "AutoRound",
    "Brecq",
    "Budget",
    "Calibration",
    "Codebook",
    "Conversion",
    "Evaluation",
    "FewbitError",
    "Float",
    "Gptq",
    "Hqq",
    "Int",
    "Nearest",
    "Options",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerTile",
    "PerToken",
    "Preprocessing",
    "QTensor",
    "Recipe",
    "Report",
    "Result",
    "Rule",
    "Samples",
    "Scheme",
    "Sensitivity",
    "Synthetic",
    "Training",
    "allocate",
    "convert",
    "finish_qat",
    "importance_matrix",
    "keep",
    "level_distance",
    "load",
    "load_adapters",
    "merge_adapters",
    "parameter_groups",
    "parse_scheme",
    "plan",
    "plan_qat",
    "prepare_adapters",
    "prepare_qat",
    "quantize",
    "quantize_folder",
    "save_adapters",
    "sensitivity",
    "training_memory",
]


def __getattr__(name: str) -> object:
    """Import `fewbit.jax` when it is asked for: it needs JAX."""
    if name != "jax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from fewbit.errors import MissingExtraError

    try:
        return importlib.import_module("fewbit.jax")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"fewbit.jax needs {error.name}; pip install 'fewbit[jax]'") from error
