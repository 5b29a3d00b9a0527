"""Find the products inside attention by running a model once.

A product belongs to the innermost module in whose call both products of an attention are made; modules that make only
one of them, such as those that wrap `matmul`, do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewbit.errors import PlanError
from fewbit.frontends.torch.attention_product import OPERANDS, AttentionProduct, Role
from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.mode_forward import watched
from fewbit.interfaces import Layer


def find_products(model: nn.Module, batch: Any | None) -> list[Layer]:
    """Return the products inside attention that one run shows, in the order of the modules.

    Args:
        model: its numbers do not matter, and need not be there where the run does without.
        batch: as for a run; `None`: token ids, for a language model of transformers.

    Raises:
        PlanError: no batch; a model that does not run; a module that has something else under a product's name.

    """
    names = {module: name for name, module in model.named_modules()}
    makers = list(_candidates(model))
    while True:
        made = _roles_made(model, makers, batch)
        halves = [module for module, roles in made.items() if len(roles) < len(OPERANDS)]
        if not halves:
            break
        # What they make is made by a module around them.
        makers = [module for module in makers if module not in halves]
    return [_layer(module, names[module], role) for module in made for role in OPERANDS]


def maker_of(model: nn.Module, layer: Layer) -> tuple[nn.Module, Role]:
    """Return the module that makes a product, and which of both it is."""
    path, _, name = layer.name.rpartition(".")
    role: Role = next(role for role in OPERANDS if role == name)
    return model.get_submodule(path), role


def _layer(module: nn.Module, name: str, role: Role) -> Layer:
    name = f"{name}.{role}" if name else role
    if hasattr(module, role):
        raise PlanError(f"{name}: its module has something of that name already; rename that")
    return Layer(name, "attention", (0, 0), type(module).__name__, multiplies_rows=False, operands=OPERANDS[role])


def _candidates(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that may make products: all but layers, which multiply by their weight."""
    for module in model.modules():
        leaf = type(module).__module__.startswith("torch.nn.") and not any(module.children())
        if not leaf and module_class(module) is None:
            yield module


def _roles_made(model: nn.Module, makers: list[nn.Module], batch: Any) -> dict[nn.Module, set[Role]]:
    """Return which products each module made in one run, in the order of `makers`."""
    made: dict[nn.Module, set[Role]] = {module: set() for module in makers}

    def take(product: AttentionProduct, *, module: nn.Module) -> Tensor:
        made[module].add(product.role)
        return product.plain()

    with watched({module: dict.fromkeys(OPERANDS, partial(take, module=module)) for module in makers}):
        _run(model, batch)
    return {module: roles for module, roles in made.items() if roles}


def _run(model: nn.Module, batch: Any) -> None:
    if batch is not None:
        run_batch(model, batch)
        return
    call = Call.made_up(model)
    if call is None:
        raise PlanError(
            f"{type(model).__name__}: the products inside attention show in a run of the model only; "
            "give a batch to run it on: `batch` of plan, `calibration` or `evaluation` of quantize"
        )
    try:
        # As it is: without a cache transformers looks into positions, which may have no numbers.
        call.run(model)
    except (RuntimeError, NotImplementedError) as error:
        if not next(model.parameters()).is_meta:
            raise
        raise PlanError(
            f"{type(model).__name__}: the products inside attention show in a run of the model only, and it does not "
            f"run without numbers ({str(error).splitlines()[0]}); load it and give the module"
        ) from error
