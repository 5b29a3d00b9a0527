"""Gather an importance matrix: the mean squares of what goes into the layers of the float model, h_j = mean of x_j^2.

As llama-imatrix does, but on any model that fewbit reads. Source: llama.cpp, tools/imatrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.calibration import Calibration, default_calibration, parse_calibration
from fewbit.checkpoints.gguf.importance_matrix import ImportanceMatrix
from fewbit.checkpoints.gguf.tensor_names import file_names
from fewbit.errors import CalibrationError, FewbitError
from fewbit.interfaces import CalibratedPart, frontend_of
from fewbit.numerics.namespace import to_numpy
from fewbit.options import Options
from fewbit.sources.floats import float_source
from fewbit.statistics.mean_square import MeanSquare

_STATISTIC = "mean_square"
_Sums = dict[str, MeanSquare]


def importance_matrix(model: Any, *, calibration: Any = None, options: Options | None = None) -> ImportanceMatrix:
    """Return the mean squares of the inputs of every linear layer, by the names that weights have in GGUF.

    A head is among them unless it is tied to the embedding. The model stays float and unchanged.

    Args:
        model: as for `quantize`, of a family that GGUF files are written for.
        calibration: as for `quantize`; left out, the model writes its own text.
        options: device, seed, progress.

    Raises:
        CheckpointError: a model that GGUF has no names for.
        CalibrationError: no data, or data that the model does not take.
        NonFiniteError: NaN or infinity in an activation; the layer is named.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> import torch
    >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> found = importance_matrix(LlamaForCausalLM(config), calibration=[torch.arange(20)[None]])
    >>> found.sums["blk.0.ffn_down.weight"].shape, found.counts["blk.0.ffn_down.weight"]
    ((1, 64), array([20.], dtype=float32))

    """
    options = options or Options()
    source = float_source(model)
    names, frontend = file_names(source.configuration()), frontend_of(source.framework)
    given = parse_calibration(calibration)
    with options.progress.phase("load"):
        live = source.load()
        if options.device != "auto":
            live = frontend.place(live, options.device)
    given = (given or default_calibration(live)).opened(live, frontend)
    batches = given.batches(live, source, seed=options.seed, progress=options.progress)
    layers = frontend.layers(live)
    measured = [own for own in layers if own.kind in ("linear", "head") and f"{own.name}.weight" in names]
    wanted = {own.name: (_STATISTIC,) for own in measured if not own.tied}
    run: Any = frontend.calibrate(live, layers, wanted, batches, sequential=False)
    found: _Sums = {}
    for stage in options.progress.track(run, "measure"):
        for part in stage:
            found |= _seen(part)
    return _matrix({names[f"{name}.weight"]: found[name] for name in wanted if name in found}, given, batches)


def _seen(part: CalibratedPart) -> _Sums:
    """Return the sums of a part; raise for those that are not finite."""
    found = {name: own[_STATISTIC] for name, own in part.statistics.items() if _STATISTIC in own}
    for name, own in found.items():
        try:
            own.result()
        except FewbitError as error:
            raise type(error)(f"{name}: {error}") from error
    return found


def _matrix(found: _Sums, given: Calibration, batches: Any) -> ImportanceMatrix:
    if not any(own.count for own in found.values()):
        raise CalibrationError("no calibration input reached a linear layer, so there is nothing to write")
    tokens = max(own.count for own in found.values())
    return ImportanceMatrix(
        sums={name: to_numpy(own.total)[None].astype(np.float32) for name, own in found.items()},
        counts={name: np.asarray([own.count], np.float32) for name, own in found.items()},
        datasets=(given.described(batches).rpartition(": ")[0],),  # how much is said beside it
        chunks=len(batches),
        chunk_size=round(tokens / len(batches)),
    )
