"""Scheme: how one tensor is quantized."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fewbit.errors import SchemeError
from fewbit.formats.cast import Cast
from fewbit.formats.codebook import Codebook
from fewbit.formats.integer import Int
from fewbit.formats.learned import Learned
from fewbit.formats.number_format import NumberFormat
from fewbit.formats.scale_type import ScaleType
from fewbit.ranges import RangeMethod
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.fixed import Fixed
from fewbit.ranges.grid import Grid
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.span_search import SpanSearch
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor

__all__ = ["ScaleType", "Scheme"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Number format x granularity x symmetry x range method x type of the stored scale.

    >>> from fewbit.formats.integer import Int
    >>> Scheme(format=Int(4), symmetric=False).bits_per_weight((8, 64))
    4.0390625
    """

    #: What one stored number can be.
    format: NumberFormat
    #: Which numbers share a scale.
    granularity: Granularity = field(default_factory=PerTensor)
    #: Zero point fixed at the middle; otherwise an integer code stands for 0.
    symmetric: bool = True
    #: The zero point lies anywhere between codes and is stored as a float, as HQQ does; 0 is then no level.
    float_zero: bool = False
    #: A float, stored as the scale is, is added to code x scale in place of a zero point: what the code 0 stands for.
    minimum: bool = False
    #: How the bounds of a group are chosen; left out: absmax when symmetric (lsq for binary and ternary), else minmax.
    range_method: RangeMethod | None = None
    #: The type a scale is rounded to before codes are computed with it; `None`: the weight's own 16-bit type.
    scale_type: ScaleType | None = None
    #: How the tensor of scales is itself quantized: MX, NVFP4, double-quantized NF4; `None`: it is not.
    scale_scheme: Scheme | None = None
    #: For inputs and outputs: ranges are fixed by calibration; otherwise they are those of each input. Where scales are
    #: quantized too, the scale of the scales alone is fixed, as that of NVFP4.
    static: bool = False

    def __post_init__(self) -> None:
        if not self.symmetric and not self.format.takes_zero_point:
            raise SchemeError(f"{self.format.name} takes no zero point; leave out 'asym'")
        if self.symmetric and self.float_zero:
            raise SchemeError("a symmetric scheme has its zero point in the middle; float_zero needs symmetric=False")
        if self.symmetric and self.format == Int(1):
            raise SchemeError("int1 symmetric has the levels -1 and 0 only; use 'int1 asym'")
        if self.scale_type not in (None, "float16", "bfloat16", "float32"):
            raise SchemeError(f"scale type {self.scale_type!r} is none of float16, bfloat16, float32")
        if self.scale_scheme is not None:
            self._check_scale_scheme(self.scale_scheme)
        self._check_kind()
        if self.range_method is None:
            object.__setattr__(self, "range_method", self._usual_range())

    def _check_kind(self) -> None:
        if not self.scaled:
            self._check_cast()
        if self.learned:
            self._check_learned()
        if self.static:
            self._check_static()
        if self.minimum or isinstance(self.range_method, SpanSearch):
            self._check_span()

    def _check_scale_scheme(self, own: Scheme) -> None:
        if self.scale_type is not None:
            raise SchemeError("a scale that is itself quantized has no float type; set that of its own scheme")
        if self.float_zero:
            raise SchemeError("a float zero point is stored beside float scales; leave out the scheme of the scale")
        if not own.symmetric:
            raise SchemeError(f"scales are positive: quantize them symmetrically, not by '{own}'")

    def _check_cast(self) -> None:
        if self.granularity != PerTensor() or self.static or self.range_method not in (None, Fixed(1.0)):
            raise SchemeError(f"{self.format.name} is a cast: without a scale there is no granularity, range or static")
        if self.scale_type or self.scale_scheme:
            raise SchemeError(f"{self.format.name} is a cast and has no scale; leave out its type")

    def _check_learned(self) -> None:
        name = self.format.name
        if self.granularity != PerChannel() and not isinstance(self.granularity, PerGroup):
            raise SchemeError(
                f"{name} learns levels for each output, not by {self.granularity.name}; use channel or g128"
            )
        if self.range_method not in (None, AbsMax()) or self.static or self.scale_scheme:
            raise SchemeError(
                f"{name} learns its levels from the weights: leave out range, static and scheme of the scale"
            )

    def _check_span(self) -> None:
        inner = self.scale_scheme
        if self.minimum and (self.symmetric or self.float_zero or self.format != Int(self.format.bits, signed=False)):
            raise SchemeError(
                "a float minimum belongs to uint codes without a zero point: symmetric=False, minimum=True"
            )
        if not isinstance(self.range_method, SpanSearch):
            raise SchemeError("a float minimum is found by SpanSearch, as in q4_1 and q4_k; use it, or a zero point")
        nested = inner is None or (isinstance(inner.granularity, PerGroup) and isinstance(inner.format, Int))
        types = self.scale_type if inner is None else inner.scale_type
        if not isinstance(self.granularity, PerGroup) or not nested or types != "float16" or self.static:
            raise SchemeError("SpanSearch takes groups under float16 scales, or under integers in groups of their own")
        if not self.symmetric and not self.minimum:
            raise SchemeError("SpanSearch finds float minima, not zero points: minimum=True")
        if self.format != Int(self.format.bits, signed=not self.minimum) and not isinstance(self.format, Codebook):
            raise SchemeError(f"SpanSearch takes full-range integers and codebooks, not {self.format.name}")

    def _check_static(self) -> None:
        if self.scale_scheme is not None:
            self._check_fixed_unit(self.scale_scheme)
            return
        if self.granularity not in (PerTensor(), PerChannel()):
            raise SchemeError(f"static ranges are per tensor or channel, not {self.granularity.name!r}; drop static")
        method = self.range_method
        if self.granularity == PerChannel() and method is not None and method.statistic not in ("extremes", None):
            raise SchemeError(f"a static range per channel comes from extremes: absmax or minmax, not {method.name}")

    def _check_fixed_unit(self, own: Scheme) -> None:
        """Raise unless one float stands above all scales, and these are those of the largest magnitudes."""
        if not self.has_unit:
            raise SchemeError(f"static fixes one float above all scales, as nvfp4 has; there is none above '{own}'")
        if (
            self.range_method not in (None, AbsMax())
            or not self.symmetric
            or not isinstance(self.granularity, PerGroup)
        ):
            raise SchemeError("under a fixed scale of scales these are of groups, symmetric and absmax; drop static")

    def _usual_range(self) -> RangeMethod:
        if self.learned:
            return AbsMax()
        if not self.scaled:
            return Fixed(1.0)
        if not self.symmetric:
            return MinMax()
        # The one magnitude of signs has to be a mean, not the largest.
        return LeastSquares() if len(self.format.levels) <= 3 and not isinstance(self.format, Int) else AbsMax()

    @property
    def scaled(self) -> bool:
        """Whether numbers are divided by a scale, which is then stored; those of a cast are not."""
        return not isinstance(self.format, Cast)

    @property
    def learned(self) -> bool:
        """Whether each output has levels of its own, learned from its weights."""
        return isinstance(self.format, Learned)

    @property
    def has_unit(self) -> bool:
        """Whether its scales are quantized under one scale of their own for the whole tensor, found by a range."""
        inner = self.scale_scheme
        return inner is not None and inner.granularity == PerTensor() and not isinstance(inner.ranging, Fixed)

    @property
    def fixes_unit(self) -> bool:
        """Whether calibration fixes the scale of its scales alone: these are quantized, and those of each input."""
        return self.static and self.scale_scheme is not None

    @property
    def has_range(self) -> bool:
        """Whether it has float scales, one for each group, that training can keep or learn."""
        return self.scaled and self.span is None and self.scale_scheme is None and not self.float_zero

    @property
    def span(self) -> int | None:
        """How many columns have their parameters found together, where a search does so: 256 for `q4_k`."""
        if not isinstance(self.range_method, SpanSearch):
            return None
        assert isinstance(self.granularity, PerGroup)  # _check_span
        inner = self.scale_scheme
        return self.granularity.size * (inner.granularity.size if inner else 1)  # type: ignore[attr-defined]

    @property
    def ranging(self) -> RangeMethod:
        """The range method in force."""
        assert self.range_method is not None  # set by __post_init__
        return self.range_method

    def stored_as(self, scale_type: ScaleType) -> Scheme:
        """Return this scheme with the type of its scale settled, unless it was settled before or there is none."""
        settled = self.scale_type or self.scale_scheme or not self.scaled
        return self if settled else replace(self, scale_type=scale_type)

    def searched(self) -> Scheme:
        """Return this scheme with ranges of least squared error where it has those of the extremes and need not."""
        by_extremes = self.static and self.granularity == PerChannel()
        usual = isinstance(self.ranging, AbsMax | MinMax) and not self.learned and not by_extremes
        return replace(self, range_method=SquaredError()) if usual else self

    @property
    def grid(self) -> Grid:
        """The levels and the arithmetic that a range method searches on."""
        return Grid(
            format=self.format, symmetric=self.symmetric, float_zero=self.float_zero, scale_type=self.scale_type
        )

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return the mean bits of a number in an array of `shape`: with 16-bit scales, zero points, minima, levels."""
        from math import prod

        from fewbit.numerics.groups import counts

        if not self.scaled:
            return self.format.bits
        scale_shape = counts(shape, self.granularity.box(shape))
        scale_bits: float = 32 if self.scale_type == "float32" else 16
        if self.scale_scheme is not None:
            scale_bits = self.scale_scheme.bits_per_weight(scale_shape)
        beside = scale_bits if self.float_zero or self.minimum else self.format.bits
        zero_bits = 0 if self.symmetric else beside
        extra = prod(scale_shape) * (scale_bits + zero_bits)
        if isinstance(self.format, Learned):
            extra += shape[0] * self.format.count * (32 if self.scale_type == "float32" else 16)
        return self.format.bits + extra / prod(shape)

    def __str__(self) -> str:
        from fewbit.schemes.notation import scheme_to_text

        return scheme_to_text(self)
