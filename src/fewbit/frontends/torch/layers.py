"""Find the quantizable layers of a torch module: `nn.Linear`, convolutions, transformers' `Conv1D`, `nn.Embedding`.

Subclasses of `nn.Linear` are left alone: others may read their weight past their `forward`. Those of `nn.Embedding`
count if a run of them shows that they look rows up, and at most multiply these by one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.expert_stack import ExpertStack, stacks
from fewbit.frontends.torch.mixture import find_mixtures
from fewbit.frontends.torch.scaled_embedding import Lookup
from fewbit.interfaces import Layer, LayerKind


def module_class(module: nn.Module) -> str | None:
    """Return the name of its class, or `None` for a module that is not quantized."""
    if type(module) is nn.Linear or Convolution.of(module):
        return type(module).__name__
    if Lookup.of(module):
        return "Embedding"
    kind = type(module)
    return "Conv1D" if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils" else None


def find_layers(model: nn.Module) -> list[Layer]:
    """Return the quantizable layers of `model` in order; layers that share one weight name each other."""
    modules = {name: module for name, module in model.named_modules() if name and module_class(module)}
    shapes = {name: tuple(canonical_weight(module).shape) for name, module in modules.items()}
    owners = defaultdict(list)
    for name, module in modules.items():
        owners[id(module.weight)].append(name)
    heads = set(_heads(model, modules))
    mixed = find_mixtures(model, {name: (shape[0], shape[1]) for name, shape in shapes.items()})
    layers = []
    fused = {own: (name, stack) for name, stack in stacks(model).items() for own in stack.layer_names(name)}
    for name, module in modules.items():
        kind = module_class(module)
        weight = module.weight
        assert kind is not None
        assert isinstance(weight, Tensor)
        shape = shapes[name]
        convolution = Convolution.of(module)
        layers.append(
            Layer(
                name=name,
                kind="conv" if convolution else _kind(kind, name in heads, name in mixed.routers),
                shape=(shape[0], shape[1]),
                module_class=fused[name][1].module_class if name in fused else kind,
                stored=tuple(weight.shape) if convolution or kind == "Conv1D" else None,
                multiplies_rows=convolution.rows_apply if convolution else kind != "Embedding",
                groups=convolution.groups if convolution else 1,
                tied=tuple(other for other in owners[id(weight)] if other != name),
                bias=getattr(module, "bias", None) is not None,
                expert=name in mixed.experts,
                part_of=_part_of(*fused[name]) if name in fused else None,
                exported_as=_operator(kind, convolution),
            )
        )
    return layers


def canonical_weight(module: nn.Module) -> Tensor:
    """Return the weight of a layer as (out, in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if convolution := Convolution.of(module):
        return convolution.matrix(weight.detach())
    return weight.detach().T if module_class(module) == "Conv1D" else weight.detach()


def _part_of(name: str, stack: ExpertStack) -> tuple[str, tuple[int, ...]] | None:
    """Return name and shape of the parameter that comes back where none of its experts is quantized."""
    return None if stack.for_good else (name, (stack.count, *stack.stored))


def _operator(kind: str, convolution: Convolution | None) -> str:
    """Return the ONNX operator that torch's exporter writes; of matrices MatMul, though it may be a Gemm."""
    if convolution is None:
        return "Gather" if kind == "Embedding" else "MatMul"
    return "ConvTranspose" if convolution.transposed else "Conv"


def _kind(kind: str, is_head: bool, is_router: bool) -> LayerKind:
    if kind == "Embedding":
        return "embedding"
    return "head" if is_head else "router" if is_router else "linear"


def _heads(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the linear layers that turn features into one score for each row of an embedding.

    That is what the model itself calls its output embedding, what shares the weight of an embedding, and what has as
    many outputs as an embedding has rows.
    """
    own = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings = [module for module in modules.values() if isinstance(module, nn.Embedding)]
    rows = {module.num_embeddings for module in embeddings}
    for name, module in modules.items():
        if isinstance(module, nn.Embedding) or Convolution.of(module):
            continue
        shared = any(module.weight is embedding.weight for embedding in embeddings)
        # A vocabulary has more rows than a feature has numbers; few classes or positions prove nothing.
        looks_like = canonical_weight(module).shape[0] in rows and canonical_weight(module).shape[0] >= 256
        if module is own or shared or looks_like:
            yield name
