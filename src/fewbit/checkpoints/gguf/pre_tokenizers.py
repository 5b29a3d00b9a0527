r"""The word of GGUF for how a byte-level BPE splits text, found by the structure of its tokenizer.json.

Each word names expressions in llama.cpp (src/llama-vocab.cpp, llm_tokenizer_bpe); listed here is how the tokenizers
library spells the same split. A split is told by what cuts the text, in order: expressions, digits one by one, and
GPT-2's own expression of ByteLevel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fewbit.errors import CheckpointError

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT2 = "ByteLevel"
#: What cuts the text, and whether whole words of the vocabulary are taken before merges: the word.
_KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("Digits", _GPT2), False): "smollm",
    ((_CL100K % "{1,3}",), True): "llama-bpe",
    ((_CL100K % "{1,3}",), False): "dbrx",
    ((_CL100K % "",), False): "qwen2",
    ((_CASED % ("", "", ""),), True): "tekken",
    ((_CASED % (_ENDINGS, _ENDINGS, "{1,3}"),), False): "gpt-4o",
}
#: Words that may be named where the structure is not known.
WORDS = tuple(sorted(_KNOWN.values()))


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """Return the word for the split of a `tokenizer.json`.

    Raises:
        CheckpointError: a split that no word is known for; the message says what it is and how to name one.

    """
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    cuts = tuple(_cuts(tokenizer.get("pre_tokenizer") or {}))
    whole = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    word = _KNOWN.get((cuts, whole))
    # llama.cpp composes no characters; the word for Qwen means text in NFC, which nearly all text is.
    if word is None or normalizer not in (None, "NFC"):
        said = " then ".join(cuts) or "nothing"
        raise CheckpointError(
            f"the tokenizer splits text by {said:.300} (normalizer {normalizer}, ignore_merges {str(whole).lower()}), "
            f"which is none of GGUF's {', '.join(WORDS)}; where you know the word of llama.cpp for it, give it as "
            "to='gguf:WORD' (--to gguf:WORD)"
        )
    return word


def _cuts(step: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a step, and the steps in it, cut the text by."""
    kind = step.get("type")
    if kind == "Sequence":
        for own in step.get("pretokenizers", ()):
            yield from _cuts(own)
    elif kind == "ByteLevel":
        if step.get("use_regex", True):
            yield _GPT2
        if step.get("add_prefix_space"):
            yield "a space before the text"
    elif kind == "Digits" and step.get("individual_digits"):
        yield "Digits"
    elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step.get("pattern") or {}
        expression = str(pattern.get("Regex", pattern))
        yield "Digits" if expression == r"\p{N}" else expression
    else:
        yield f"{kind} { ({key: value for key, value in step.items() if key != 'type'}) }"
