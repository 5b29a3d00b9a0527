"""What runs ONNX files, described by tables: what each runtime takes, and what it then computes in integers."""

from __future__ import annotations

from fewbit.catalogue import lookup
from fewbit.runtimes.runtime import Runtime

#: Runtimes by the word for them in `runtime=`.
RUNTIMES = {
    "ort-cpu": "fewbit.runtimes.ort_cpu:ORT_CPU",
    "tensorrt": "fewbit.runtimes.tensorrt:TENSORRT",
    "migraphx": "fewbit.runtimes.migraphx:MIGRAPHX",
    "openvino": "fewbit.runtimes.openvino:OPENVINO",
}


def runtime_named(name: str) -> Runtime:
    """Return the runtime called `name`.

    >>> runtime_named("tensorrt").zero_points
    False

    Raises:
        RecipeError: no such runtime.

    """
    found: Runtime = lookup(RUNTIMES, name, what="runtime")
    return found
