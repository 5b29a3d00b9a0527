"""Quantize a model while it is loaded: each layer is read, rounded and let go of before the next one is read.

In memory at once: the codes so far, what stays float, and one float layer. So algorithms have no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fewbit.clock import Clock
from fewbit.errors import NotYetError, PlanError, SourceError
from fewbit.evaluation.side_by_side import Measured
from fewbit.interfaces import Frontend, Silent, Source, frontend_of
from fewbit.model_plan import model_plan
from fewbit.overflow import without_large_activations, without_large_weights
from fewbit.planning import Plan
from fewbit.recipe import Recipe
from fewbit.reporting import remarks_of, report_of
from fewbit.result import Result
from fewbit.solved import Data, Solved
from fewbit.solving import needs_data, solve
from fewbit.sources.unloaded import TensorwiseSource, Unloaded
from fewbit.transforming import transformed


def quantized_while_loading(source: Source, recipe: Recipe, dtype: str) -> Result:
    """Return the model of `source`, quantized by a recipe that needs no data.

    Raises:
        PlanError: the recipe cannot be carried out, or not without data.
        NotYetError: the model has to be read as a whole.
        SourceError: files that do not fill the model.
        NonFiniteError: NaN or infinity in a number; the layer is named.

    """
    from fewbit.frontends.torch.filling import names_of

    if not isinstance(source, TensorwiseSource):
        raise NotYetError(f"{source.name} is no folder or file that is read tensor by tensor; use fewbit.quantize")
    clock = Clock()
    with clock.phase("load and quantize"):
        opened, frontend = source.unloaded(), frontend_of(source.framework)
        made = model_plan(source, opened.model, recipe, to=None, dtype=dtype)
        _require_no_data(made)
        made.require_sound()
        work = _Work(opened, frontend, names_of(opened.model))
        with transformed(opened.model, recipe, frontend, (), made.target) as transforms:
            made, unchecked = without_large_activations(made, frontend, opened.model, ())
            made, solved = work.rounded(made)
            changed = work.filled(made)
    report = report_of(made, solved, Measured(), frontend, opened.model, {})
    report = replace(
        report,
        remarks=(*transforms.sentences, *unchecked, *remarks_of(changed, solved, made, idle=False)),
        seconds=clock.seconds,
        peak_memory=clock.peak_memory,
    )
    return Result(model=opened.model, plan=made, report=report, source=source)


def _require_no_data(made: Plan) -> None:
    """Raise `PlanError` for a recipe that runs the model; there is none to run before all of it is read."""
    # Presets have `batchnorm`, which says itself that it does nothing without data.
    wanted = [transform.name for transform in made.recipe.transforms if transform.name != "batchnorm"]
    wanted += [correction.name for correction in made.recipe.corrections]
    wanted += sorted({row.algorithm.name for row in made.rows if row.algorithm and row.algorithm.statistics})
    wanted += ["ranges from data"] if not wanted and needs_data(made) else []
    wanted += ["products inside attention"] if made.rounded_products else []
    if wanted:
        raise PlanError(
            f"a model is quantized while loading without running it, and recipe {made.recipe.name} has "
            f"{', '.join(wanted)}; take one without, such as nf4 or w8a16, or fewbit.quantize"
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """A model that is read and rounded piece by piece."""

    opened: Unloaded
    frontend: Frontend
    #: Under which names each tensor of the model without numbers hangs.
    names: Mapping[str, tuple[str, ...]]

    def rounded(self, made: Plan) -> tuple[Plan, dict[str, Solved]]:
        """Round every layer of the plan; return the plan in its last form, and how the layers came about."""
        from fewbit.frontends.torch.filling import without_weight
        from fewbit.frontends.torch.resident_memory import trim

        model, solved, rows = self.opened.model, {}, []
        for row in made.rows:
            if row.scheme is None:
                rows.append(row)
                continue
            module = model.get_submodule(row.layer.name)
            own = [name for name in self.names if name.rpartition(".")[0] == row.layer.name]
            for name in own:
                self._read(name, [name])
            single = without_large_weights(replace(made, rows=(row,), hints=()), self.frontend, model)
            rows += single.rows
            for name, done in solve(model, single, self.frontend, Data(), Silent()).items():
                done.replacement.install()
                without_weight(module)
                solved[name] = done
            trim()  # else the heap keeps what one layer has left
        return replace(made, rows=tuple(rows)), solved

    def filled(self, made: Plan) -> int:
        """Read what stays float, round it to the type that it is stored in; return how many numbers that changed."""
        model = self.opened.model
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_meta and name in self.names:
                self._read(name, [own for own in self.names[name] if own not in made.weight_names])
        kept = made.float_names
        self.frontend.require_finite(model, (), kept, made.storage_type)
        return self.frontend.round_floats(model, kept, made.storage_type)

    def _read(self, name: str, places: Sequence[str]) -> None:
        """Read the tensor that the model has under `name`, and put it into `places`."""
        from fewbit.frontends.torch.filling import fill

        stored = next((own for own in self.names[name] if own in self.opened.tensors), None)
        if stored is None:
            raise SourceError(f"no file holds {name}; is the download complete?")
        fill(self.opened.model, places, self.opened.tensors[stored]())
