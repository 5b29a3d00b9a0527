"""fewbit stores and computes trained neural networks in fewer bits and shows what that cost.

import fewbit as fb

result = fb.quantize(model, "w4a16")
result.report.save("report.html")
result.save("out/")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Where a name is at home: it is imported when it is asked for, so that `import fewbit` costs next to nothing.
_HOMES = {
    "AdaRound": "fewbit.algorithms.adaround",
    "Adapters": "fewbit.training.adapters",
    "Allocation": "fewbit.allocation.allocation",
    "AutoRound": "fewbit.algorithms.autoround",
    "Brecq": "fewbit.algorithms.brecq",
    "Budget": "fewbit.allocation.budget",
    "Calibration": "fewbit.calibration",
    "Codebook": "fewbit.formats.codebook",
    "Conversion": "fewbit.report.conversion",
    "Evaluation": "fewbit.measurement",
    "FewbitError": "fewbit.errors",
    "Float": "fewbit.formats.minifloat",
    "Gptq": "fewbit.algorithms.gptq",
    "Hqq": "fewbit.algorithms.hqq",
    "Int": "fewbit.formats.integer",
    "Nearest": "fewbit.algorithms.nearest",
    "Options": "fewbit.options",
    "PerChannel": "fewbit.schemes.granularity",
    "PerGroup": "fewbit.schemes.granularity",
    "PerTensor": "fewbit.schemes.granularity",
    "PerTile": "fewbit.schemes.granularity",
    "PerToken": "fewbit.schemes.granularity",
    "Preprocessing": "fewbit.samples.preprocessing",
    "QTensor": "fewbit.qtensor",
    "Recipe": "fewbit.recipe",
    "Report": "fewbit.report.data",
    "Result": "fewbit.result",
    "Rule": "fewbit.rule",
    "Samples": "fewbit.samples.files",
    "Scheme": "fewbit.schemes.scheme",
    "Sensitivity": "fewbit.allocation.sensitivity",
    "Synthetic": "fewbit.synthetic.options",
    "Training": "fewbit.training.options",
    "allocate": "fewbit.allocation.allocator",
    "convert": "fewbit.conversion",
    "finish_qat": "fewbit.training.qat",
    "importance_matrix": "fewbit.importance",
    "keep": "fewbit.rule",
    "level_distance": "fewbit.training.level_distance",
    "load": "fewbit.pipeline",
    "load_adapters": "fewbit.training.adapters",
    "merge_adapters": "fewbit.training.adapters",
    "parameter_groups": "fewbit.training.parameter_groups",
    "parse_scheme": "fewbit.schemes.notation",
    "plan": "fewbit.pipeline",
    "plan_qat": "fewbit.training.qat",
    "prepare_adapters": "fewbit.training.adapters",
    "prepare_qat": "fewbit.training.qat",
    "quantize": "fewbit.pipeline",
    "quantize_folder": "fewbit.streaming",
    "save_adapters": "fewbit.training.adapters",
    "sensitivity": "fewbit.allocation.sensitivity",
    "training_memory": "fewbit.training.memory",
}


def __getattr__(name: str) -> object:
    """Import the module that has `name`; that of `fewbit.jax` needs JAX."""
    import importlib

    if name == "jax":
        return _jax()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(_HOMES[name]), name))


def __dir__() -> list[str]:
    """Return the names that are imported when they are asked for, too."""
    return sorted({*globals(), *__all__})


def _jax() -> object:
    """Return `fewbit.jax`, where JAX is installed."""
    import importlib

    from fewbit.errors import MissingExtraError

    try:
        return importlib.import_module("fewbit.jax")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"fewbit.jax needs {error.name}; pip install 'fewbit[jax]'") from error
