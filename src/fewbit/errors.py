"""Every error that fewbit raises on purpose: the fact, the value and the remedy in one message.

FewbitError
├── SchemeError          a scheme or its notation makes no sense
│   └── GroupSizeError   a group size does not divide a layer's width
├── RecipeError          a rule, preset or option that does not exist or matches nothing
├── PlanError            the plan holds problems; nothing was done
├── SourceError          a model or text cannot be read
├── CalibrationError     calibration data that cannot be used, or is missing
├── NonFiniteError       NaN or infinity where numbers were expected
├── CheckpointError      a file cannot be written or read, or would not hold the numbers exactly
├── ExecutionError       workers that cannot be reached, or that keep dying
├── NotYetError          designed, but not in this version
└── MissingExtraError    an optional dependency is not installed
"""

from __future__ import annotations


class FewbitError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class SchemeError(FewbitError, ValueError):
    """A scheme, or the notation of one, that makes no sense."""


class GroupSizeError(SchemeError):
    """A group size that does not divide the width of the layer it is meant for."""


class RecipeError(FewbitError, ValueError):
    """A rule, preset, algorithm or option that does not exist, or a rule that matches nothing."""


class PlanError(FewbitError):
    """The plan holds problems; nothing was quantized and nothing was written."""


class SourceError(FewbitError):
    """A model or a text that cannot be read."""


class CalibrationError(FewbitError, ValueError):
    """Calibration data that cannot be used."""


class NonFiniteError(FewbitError, ValueError):
    """NaN or infinity in a weight or an activation."""


class CheckpointError(FewbitError):
    """A checkpoint that cannot be written, cannot be read, or would not hold the numbers exactly."""


class ExecutionError(FewbitError):
    """Workers that cannot be reached, differ from this process, or keep dying."""


class NotYetError(FewbitError, NotImplementedError):
    """Part of the design, but not of this version."""


class MissingExtraError(FewbitError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""


class FewbitWarning(UserWarning):
    """Something was done, and not as well as it should have been; the message says what and why."""
