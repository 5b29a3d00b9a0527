"""A module with quantizers in it, and how they are put in and taken out; what was done hangs at the module.

A weight is a parametrization of torch, so that forwards, optimizers, state_dicts and compilers see what they know.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewbit.activation import Activation
from fewbit.errors import PlanError
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.mode_forward import guards
from fewbit.frontends.torch.norm_folding import NormPair
from fewbit.frontends.torch.product_forms import ProductForms, forms_of
from fewbit.frontends.torch.rounded_product import RoundedProduct, hold, let_go
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.schemes.scheme import Scheme
from fewbit.training.activation_quantizer import ActivationQuantizer
from fewbit.training.finite import require_finite_output
from fewbit.training.schedule import STEP, Schedule
from fewbit.training.training_plan import TrainingPlan
from fewbit.training.weight_quantizer import WeightQuantizer

#: Where the quantizers of a layer hang, and at the model what was done to it.
INPUT, OUTPUT, PREPARED = "input_quantizer", "output_quantizer", "fewbit_prepared"
_USER = "training"


@dataclass(slots=True)
class Prepared:
    """What `prepare_qat` did to a model."""

    model: nn.Module
    #: What was asked for, and the plan that it made.
    asked: TrainingPlan
    plan: Plan
    schedule: Schedule
    #: What showed which BatchNorm follows which layer, and began ranges.
    batch: Any = None
    #: Layers with the BatchNorms that they are folded with at the end.
    pairs: Sequence[NormPair] = ()
    #: What the report is to say.
    sentences: tuple[str, ...] = ()
    _guards: list[nn.Module] = field(default_factory=list)
    _products: list[ProductForms] = field(default_factory=list)

    @property
    def rows(self) -> list[PlanRow]:
        """Of the layers with quantizers."""
        return [row for row in self.plan.rows if row.scheme]

    def module(self, row: PlanRow) -> nn.Module:
        """Return the module of a layer."""
        return self.model.get_submodule(row.layer.name)

    def install(self) -> None:
        """Put the quantizers in."""
        shared: dict[tuple[int, Scheme], WeightQuantizer] = {}
        for row in self.rows:
            assert row.scheme is not None
            module = self.module(row)
            own = id(module.weight), row.scheme
            # A weight that layers share has one range.
            weight = shared[own] = shared.get(own) or self._weight(module, row.scheme)
            parametrize.register_parametrization(module, "weight", weight, unsafe=True)
            self._put(module, row, weight.convolution)
        self._put_products()
        rounding = [self.module(row) for row in self.rows if row.input or row.output]
        # torch's fused encoder layers read the weights of the layers inside and would not round their inputs.
        self._guards = guards(self.model, rounding)
        hold(self._guards, _USER)
        # No submodule: a model may be a list of layers that runs them all.
        self.model.__dict__[PREPARED] = self
        self.model.register_forward_pre_hook(self.schedule.count)
        self.model.register_forward_hook(require_finite_output, with_kwargs=True)

    def _weight(self, module: Any, scheme: Scheme) -> WeightQuantizer:
        """Return what rounds the weight of a module from now on."""
        weight = WeightQuantizer(module, scheme, self.asked.training, self.schedule)
        weight.norm = tuple(pair.norm for pair in self.pairs if pair.layer is module)
        weight.begin(module.weight)
        return weight.train(module.training)

    def _put(self, module: Any, row: PlanRow, convolution: Convolution | None) -> None:
        channels = {INPUT: row.layer.shape[1], OUTPUT: row.layer.shape[0]}
        if convolution is not None:
            channels = {INPUT: convolution.in_channels, OUTPUT: convolution.out_channels}
        for name, scheme in ((INPUT, row.input), (OUTPUT, row.output)):
            if scheme is None:
                continue
            own = ActivationQuantizer(row.layer.name, scheme, channels[name], self.asked.training, self.schedule)
            own.spatial = 0 if convolution is None else len(convolution.kernel)
            own.to(module.weight.device).train(module.training)
            module.add_module(name, own)
            if name == INPUT:
                module.register_forward_pre_hook(own.on_input, with_kwargs=True)
            else:
                module.register_forward_hook(own.on_output)

    def _put_products(self) -> None:
        """Round the operands of products inside attention."""
        device = next(iter((*self.model.parameters(), *self.model.buffers()))).device
        rounded = {}
        for row in self.plan.rounded_products:
            scheme, name = row.input, row.layer.name
            assert scheme is not None
            training, schedule = self.asked.training, self.schedule
            own = {
                operand: ActivationQuantizer(f"{name}.{operand}", scheme, None, training, schedule)
                for operand in row.layer.operands
            }
            rounded[name] = RoundedProduct(own).to(device)
        products = [row.layer for row in self.plan.rows if row.layer.kind == "attention"]
        self._products = forms_of(self.model, products, rounded)
        for form in self._products:
            form.install()

    @property
    def products(self) -> dict[str, dict[str, Activation]]:
        """How the operands of products inside attention are rounded as it is now, by product."""
        return {
            form.layer.name: {name: own.activation for name, own in form.rounded.named_children()}  # type: ignore[misc]
            for form in self._products
        }

    def quantizer(self, row: PlanRow) -> WeightQuantizer:
        """Return what rounds the weight of a layer."""
        found = self.module(row).parametrizations["weight"][0]  # type: ignore[index]
        assert isinstance(found, WeightQuantizer)
        return found

    def activation(self, row: PlanRow, name: str) -> ActivationQuantizer | None:
        """Return what rounds the input or output of a layer."""
        found = self.module(row)._modules.get(name)
        assert found is None or isinstance(found, ActivationQuantizer)
        return found

    def trained(self, row: PlanRow) -> Tensor:
        """Return the float weight behind the rounded one."""
        weight = self.module(row).parametrizations["weight"].original  # type: ignore[index,union-attr]
        assert isinstance(weight, Tensor)
        return weight

    def remove(self) -> None:
        """Take the quantizers out; the model is float again, with the weights that it has by now."""
        let_go(self._guards, _USER)
        for form in self._products:
            form.restore()
        for row in self.rows:
            module = self.module(row)
            _own_class(module)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            for key in _take(module._forward_pre_hooks, module._modules.pop(INPUT, None)):
                module._forward_pre_hooks_with_kwargs.pop(key, None)
            _take(module._forward_hooks, module._modules.pop(OUTPUT, None))
        _take(self.model._forward_pre_hooks, self.schedule)
        for key in taken_from(self.model._forward_hooks, lambda hook: hook is require_finite_output):
            self.model._forward_hooks_with_kwargs.pop(key, None)
        del self.model.__dict__[PREPARED], self.model._buffers[STEP]


def prepared(model: nn.Module) -> Prepared:
    """Return what was done to `model`.

    Raises:
        PlanError: nothing was.

    """
    found = model.__dict__.get(PREPARED)
    if not isinstance(found, Prepared):
        raise PlanError(f"{type(model).__name__} is not prepared for training; call fewbit.prepare_qat first")
    return found


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: torch removes the weight from one that its copies share."""
    kind = type(module)
    members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)


def _take(hooks: MutableMapping[int, Any], owner: Any) -> list[int]:
    """Remove the hooks that are methods of `owner`, and return their keys."""
    return taken_from(hooks, lambda hook: owner is not None and getattr(hook, "__self__", None) is owner)


def taken_from(hooks: MutableMapping[int, Any], wanted: Callable[[Any], bool]) -> list[int]:
    """Remove the hooks that are `wanted`, and return their keys."""
    keys = [key for key, hook in hooks.items() if wanted(hook)]
    for key in keys:
        del hooks[key]
    return keys
