"""How many tokens GPTQ needs: its error on other tokens than those that it saw, beside rounding without data.

Layers of smollm2 on the text of docs/; run it in the repository. Printed are squared errors of the output on other
tokens, as shares of those of rounding to nearest: of a search of scales without data, then of GPTQ on as many
tokens as the number says, in inputs of the layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.sources import open_source
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

LAYERS = [f"model.layers.{block}.mlp.{part}" for block in (3, 12, 22) for part in ("gate_proj", "down_proj")]
SHARES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
SEQUENCES, LENGTH, SEEN = 24, 512, 8192


def inputs_of(layers: list[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the weight (out, in) and the inputs (tokens, in) of each layer, the tokens shuffled."""
    source = open_source("smollm2")
    model = source.load()
    pages = sorted(path for path in Path("docs").rglob("*.md"))
    encoded: Any = source.tokenizer().encode("\n".join(page.read_text(encoding="utf-8") for page in pages))
    tokens = torch.tensor(getattr(encoded, "ids", encoded)[: SEQUENCES * LENGTH]).view(-1, LENGTH)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    with torch.no_grad():
        for sequence in tokens:
            model(sequence[None], logits_to_keep=1)
    order = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(0))
    rows = {name: torch.cat(own).flatten(0, 1)[order] for name, own in seen.items()}
    return {name: (model.get_submodule(name).weight.detach(), own) for name, own in rows.items()}


def moment(rows: torch.Tensor) -> SecondMoment:
    """Return the second moment of some rows, each of equal power."""
    statistic = RelativeSecondMoment.init(rows.shape[1], rows)
    statistic.update(rows)
    return statistic


def main() -> None:
    """Print a row for each scheme and layer."""
    given = inputs_of(LAYERS)
    print(f"{'scheme':8} {'layer':28} {'search':>6} " + " ".join(f"{share:6.3f}" for share in SHARES))
    for text in ("int4 g64", "int3 g64", "int2 g64"):
        scheme = parse_scheme(text)
        for name, (weight, rows) in given.items():
            width, held_out = weight.shape[1], moment(rows[SEEN:]).result()

            def error(found: QTensor, weight: torch.Tensor = weight, held_out: torch.Tensor = held_out) -> float:
                off = found.dequantize() - weight
                return float(((off @ held_out) * off).sum())

            known = [SecondMoment.identity(width, rows), *(moment(rows[: int(width * share)]) for share in SHARES)]
            solved = [Gptq()(weight, {"relative_second_moment": own}, scheme).qtensor for own in known]
            least = error(quantize(weight, scheme))
            print(f"{text:8} {name:28} " + " ".join(f"{error(own) / least:6.3f}" for own in solved), flush=True)


if __name__ == "__main__":
    main()
