"""The contracts between fewbit's core and what surrounds it: layers, sources, front ends, checkpoint formats.

They are protocols and plain descriptions; `implementations` finds what fulfils them.
"""

from __future__ import annotations

from fewbit.interfaces.calibration_run import CalibratedPart, CalibrationRun, DividedRun
from fewbit.interfaces.checkpoint import Checkpoint, CheckpointFormat, Writer
from fewbit.interfaces.forms import Activations, Execution, Forms, Replacement, Switch, Trainable
from fewbit.interfaces.frontend import Frontend, Watch
from fewbit.interfaces.implementations import (
    CHECKPOINTS,
    FRONTENDS,
    ONE_FILE,
    RUNTIME_FILES,
    checkpoint_format,
    frontend_of,
    target_of,
)
from fewbit.interfaces.layer import LAYER_KINDS, Layer, LayerKind, QuantizedLayer
from fewbit.interfaces.manifest import BYTES, FLOAT_TYPES, Manifest, StoredTensor
from fewbit.interfaces.progress import Progress, Silent
from fewbit.interfaces.source import Source
from fewbit.interfaces.target import Content, Target

__all__ = [
    "BYTES",
    "CHECKPOINTS",
    "FLOAT_TYPES",
    "FRONTENDS",
    "LAYER_KINDS",
    "ONE_FILE",
    "RUNTIME_FILES",
    "Activations",
    "CalibratedPart",
    "CalibrationRun",
    "Checkpoint",
    "CheckpointFormat",
    "Content",
    "DividedRun",
    "Execution",
    "Forms",
    "Frontend",
    "Layer",
    "LayerKind",
    "Manifest",
    "Progress",
    "QuantizedLayer",
    "Replacement",
    "Silent",
    "Source",
    "StoredTensor",
    "Switch",
    "Target",
    "Trainable",
    "Watch",
    "Writer",
    "checkpoint_format",
    "frontend_of",
    "target_of",
]
