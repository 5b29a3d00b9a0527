"""Mixtures of GGUF types by name, such as q4_k_m: which type each layer gets, by its part and by its block.

More bits go to values and to the way out of the feed-forward part, in the first and last eighth of the blocks and in
every third between. A width that is no multiple of 256 falls back to blocks of 32. Source: llama.cpp,
src/llama-quant.cpp (llama_tensor_get_type_impl).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fewbit.drafts import Draft
from fewbit.errors import RecipeError
from fewbit.problems import several
from fewbit.schemes.casts import FP16
from fewbit.schemes.gguf import FALLBACKS, scheme_of
from fewbit.schemes.scheme import Scheme

#: Which blocks of a mixture get a type: every one, `more` of them (see `_gets_more`), or those before a fraction 1 / n.
Where = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Types by the part of a block."""

    base: str
    #: Of the head, or of an embedding that is the head too; an embedding of its own has the base.
    head: str = "Q6_K"
    #: By part (type, which blocks), the first that holds counts.
    parts: Mapping[str, tuple[tuple[str, Where], ...]] = field(default_factory=dict)
    #: The type of values where at least four heads share them.
    shared_values: str | None = None


_SIX = {"attn_v": (("Q6_K", "more"),), "ffn_down": (("Q6_K", "more"),)}
MIXTURES = {
    "q8_0": Mixture(base="Q8_0", head="Q8_0"),
    "q6_k": Mixture(base="Q6_K"),
    "q5_k_m": Mixture(base="Q5_K", parts={**_SIX, "attn_qkv": (("Q6_K", "every"),)}),
    "q4_k_m": Mixture(base="Q4_K", parts={**_SIX, "attn_qkv": (("Q5_K", "every"),)}),
    "q4_0": Mixture(base="Q4_0"),
    "iq4_xs": Mixture(base="IQ4_XS", parts={"ffn_down": (("Q5_K", 8),)}, shared_values="Q5_K"),
    "q3_k_m": Mixture(
        base="Q3_K",
        parts={
            "attn_v": (("Q5_K", "first two"), ("Q4_K", "every")),
            "ffn_down": (("Q5_K", 16), ("Q4_K", "every")),
            "attn_output": (("Q4_K", "every"),),
            "attn_qkv": (("Q4_K", "every"),),
        },
    ),
    "q2_k": Mixture(
        base="Q2_K",
        parts=dict.fromkeys(("attn_v", "ffn_down", "attn_output"), (("Q3_K", "every"),)),
        shared_values="Q4_K",
    ),
}
#: Parts of a block by the end of a layer's name.
_PARTS = {
    "attn_v": ("self_attn.v_proj",),
    "attn_qkv": ("self_attn.qkv_proj", "attn.c_attn"),
    "attn_output": ("self_attn.o_proj", "attn.c_proj"),
    "ffn_down": ("mlp.down_proj", "mlp.c_proj", "mlp.fc2"),
}


def mix(drafts: Sequence[Draft], name: str) -> list[str]:
    """Give the layers of a model their types under the mixture `name`; return what to say of fallbacks.

    Raises:
        RecipeError: no such mixture.

    """
    if name not in MIXTURES:
        raise RecipeError(f"{name!r:.60} is no mixture of GGUF types; there are {', '.join(MIXTURES)}")
    mixture = MIXTURES[name]
    blocks = 1 + max((_block(draft.layer.name) or 0 for draft in drafts), default=0)
    sharing = _heads_that_share(drafts)
    seen = any(draft.layer.kind == "embedding" for draft in drafts)
    fallen: dict[str, list[str]] = {}
    for draft in drafts:
        if draft.scheme is None:
            continue
        if draft.layer.kind == "head" and not seen:  # an embedding that is no layer may be the head too
            draft.scheme = None
            draft.notes.append("kept: its embedding is not quantized")
            continue
        wanted = _wanted(draft, mixture, blocks, sharing)
        kind, draft.scheme = _fitting(wanted, draft.layer.shape[1])
        if kind != wanted:
            draft.notes.append(f"{wanted} needs widths of 256, so {kind}")
            fallen.setdefault(f"{wanted} -> {kind}, whose blocks divide the width", []).append(draft.layer.name)
    return [f"{several(names)}: {text}" for text, names in fallen.items()]


def _wanted(draft: Draft, mixture: Mixture, blocks: int, sharing: int) -> str:
    """Return the type that a layer gets where its width allows it."""
    layer = draft.layer
    if layer.kind == "head" or (layer.kind == "embedding" and layer.tied):
        return mixture.head
    part = next((own for own, ends in _PARTS.items() if layer.name.endswith(ends)), "")
    block = _block(layer.name)
    if block is None:
        return mixture.base
    if part == "attn_v" and sharing >= 4 and mixture.shared_values:
        return mixture.shared_values
    for kind, where in mixture.parts.get(part, ()):
        if _holds(where, block, blocks):
            return kind
    return mixture.base


def _holds(where: Where, block: int, blocks: int) -> bool:
    if isinstance(where, int):
        return block < blocks // where
    return {"every": True, "first two": block < 2, "more": _gets_more(block, blocks)}[where]


def _gets_more(block: int, blocks: int) -> bool:
    """Whether a block is one of about half that get more bits.

    >>> [block for block in range(16) if _gets_more(block, 16)]
    [0, 1, 4, 7, 10, 13, 14, 15]
    """
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _fitting(kind: str, width: int) -> tuple[str, Scheme]:
    if width % 256:
        kind = FALLBACKS.get(kind.lower(), kind).upper()
    return (kind, scheme_of(kind)) if width % 32 == 0 else ("F16", FP16)


def _block(name: str) -> int | None:
    """Return the number of the block that a layer is in.

    >>> _block("model.layers.12.mlp.down_proj"), _block("lm_head")
    (12, None)
    """
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _heads_that_share(drafts: Sequence[Draft]) -> int:
    """Return how many heads share each key and value: rows of Q by rows of V."""
    rows = {
        draft.layer.name.rpartition(".")[2]: draft.layer.shape[0] for draft in drafts if _block(draft.layer.name) == 0
    }
    return rows.get("q_proj", 0) // max(1, rows.get("v_proj", 1))
