"""A QTensor as a few plain tensors, the same for every kernel, and back.

`codes`: dense n-bit bytes (uint8), low bits first, rows as in the weight. `scale`: in the scheme's type, or float32
where that would not be exact; a quantized scale becomes `scale_codes` and `scale_scale`; of a cast there is none.
`zero_point`: as it is. `codebook`: learned levels (out, levels), in the scheme's type.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewbit.formats.scale_type import scale_fits
from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import QTensor, scale_shape, unit_scale
from fewbit.schemes.scheme import Scheme


def to_canonical(qtensor: QTensor) -> dict[str, Tensor]:
    """Return the tensors that stand for `qtensor`."""
    scheme = qtensor.scheme
    tensors = {"codes": pack(scheme.format.to_unsigned(qtensor.codes), scheme.format.bits)}
    if qtensor.zero_point is not None:
        tensors["zero_point"] = qtensor.zero_point
    if not scheme.scaled:
        return tensors
    if isinstance(qtensor.scale, QTensor):
        return tensors | {f"scale_{name}": tensor for name, tensor in to_canonical(qtensor.scale).items()}
    scale_type = scheme.scale_type or "float32"
    if qtensor.codebook is not None:
        tensors["codebook"] = qtensor.codebook.to(getattr(torch, scale_type))
    exact = bool(scale_fits(qtensor.scale, scale_type).all())
    return tensors | {"scale": qtensor.scale.to(getattr(torch, scale_type)) if exact else qtensor.scale}


def from_canonical(tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
    """Undo `to_canonical` for a weight of `shape`."""
    scales = scale_shape(shape, scheme)
    scale: Tensor | QTensor
    if not scheme.scaled:
        scale = unit_scale(shape, tensors["codes"])
    elif scheme.scale_scheme is None:
        scale = tensors["scale"].to(torch.float32).reshape(scales)
    else:
        inner = {name.removeprefix("scale_"): tensor for name, tensor in tensors.items() if name[:6] == "scale_"}
        scale = from_canonical(inner, scheme.scale_scheme, scales)
    patterns = unpack(tensors["codes"], scheme.format.bits, shape[-1])
    return QTensor(
        codes=scheme.format.from_unsigned(patterns),
        scale=scale,
        zero_point=tensors.get("zero_point"),
        scheme=scheme,
        codebook=tensors["codebook"].to(torch.float32) if scheme.learned else None,
    )
