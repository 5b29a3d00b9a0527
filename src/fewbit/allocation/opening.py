"""A model opened for a search: loaded, its units found, its data cut, everything that scores and trials need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.allocation.candidates import Candidates
from fewbit.allocation.few_batches import few_batches
from fewbit.allocation.score_cache import ScoreCache
from fewbit.allocation.subject import Subject
from fewbit.allocation.trial import Workplace
from fewbit.allocation.units import Setting, Unit, units_of
from fewbit.calibration import Calibration, default_calibration, first_batch, parse_calibration
from fewbit.errors import PlanError
from fewbit.evaluation.token_ids import require_known
from fewbit.interfaces import Frontend, Source, frontend_of, target_of
from fewbit.measurement import Evaluation, parse_evaluation
from fewbit.model_plan import storage_type_of
from fewbit.no_data import NoData
from fewbit.options import Options
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan, resolve
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.solved import Data
from fewbit.sources.floats import float_source

#: Tokens, or samples, on which single layers are solved.
_SOLVED_ON = (2048, 128)
#: The same that whole models are measured on where no data for evaluation is given.
_MEASURED_ON = (2048, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A float model with all that a search needs of it."""

    subject: Subject
    units: Sequence[Unit]
    setting: Setting
    workplace: Workplace
    #: Bytes of what is no layer's weight, and of each layer that stays float whatever the budget is.
    rest_bytes: int
    kept_bytes: Mapping[str, int]
    #: What single layers, and what whole models are measured on.
    described: str
    evaluated: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is said of a search besides its model; see `fewbit.allocate`."""

    candidates: Candidates
    to: str | None
    dtype: str
    calibration: Any
    evaluation: Any = None
    keep: tuple[str, ...] = ()
    equal: str = "none"
    cache: str | Path | None = None
    options: Options


@contextmanager
def opened(model: Any, wanted: Asked) -> Iterator[Opened]:
    """Load a model and its data; on the way out experts that were taken apart are put together again.

    Raises:
        PlanError: calibration on nothing.

    """
    calibration, options = wanted.calibration, wanted.options
    if NoData.of(calibration) is not None or (isinstance(calibration, str) and calibration == "none"):
        raise PlanError("bits are allocated by what data shows; give calibration data, or leave it out")
    scores = ScoreCache.opened(wanted.cache)
    given, asked = parse_calibration(calibration), parse_evaluation(wanted.evaluation)
    source = float_source(model)
    frontend = frontend_of(source.framework)
    with options.progress.phase("load"):
        live = source.load()
        live = live if options.device == "auto" else frontend.place(live, options.device)
    given, evaluated, name = _data(live, frontend, given, asked)
    given = given or default_calibration(live)
    with options.progress.phase("calibration data"):
        batches = given.batches(live, source, seed=options.seed, progress=options.progress)
    require_known(evaluated, live, what="evaluation")
    data = Data(batches=batches, example=batches[0], seed=options.seed, sequential=given.sequential)
    few, size = few_batches(batches)
    with frontend.experts_apart(live, partial(first_batch, live, given, evaluated)):
        setting = _setting(source, wanted)
        units = units_of(frontend, live, frontend.layers(live), setting, batches[0])
        floats = _floats(frontend, live, setting)
        subject = Subject(
            model=live, framework=source.framework, frontend=frontend, layers=frontend.layers(live), batches=few,
            rows=_rows(units), calibration=few_batches(batches, *_SOLVED_ON)[0], progress=options.progress,
            cache=scores,
        )  # fmt: skip
        yield Opened(
            subject=subject,
            units=units,
            setting=setting,
            workplace=Workplace(
                source=source, model=live, frontend=frontend, target=wanted.to, dtype=wanted.dtype, data=data,
                evaluated=evaluated or few_batches(batches, *_MEASURED_ON)[0], progress=options.progress,
            ),
            rest_bytes=floats.rest_bytes,
            kept_bytes={row.layer.name: row.bytes_after for row in floats.rows},
            described=f"{size} of {given.described(batches)}",
            evaluated=name or "the calibration data",
        )  # fmt: skip


def _setting(source: Source, wanted: Asked) -> Setting:
    target = target_of(wanted.to) if wanted.to is not None else None
    return Setting(
        candidates=wanted.candidates,
        target=target,
        storage_type=storage_type_of(source, target, wanted.dtype),
        keep=wanted.keep,
        equal=wanted.equal,
    )


def _rows(units: Sequence[Unit]) -> dict[str, dict[str, PlanRow]]:
    """Return what each layer may become, by candidate."""
    return {
        layer.name: {own.name: own.rows[place] for own in unit.choices}
        for unit in units
        for place, layer in enumerate(unit.layers)
    }


def _data(
    live: Any, frontend: Frontend, given: Calibration | None, asked: Evaluation | None
) -> tuple[Calibration | None, Sequence[Any], str | None]:
    """Return calibration and evaluation with their files read."""
    evaluated, name = asked.opened(live, frontend) if asked else ((), None)
    return given.opened(live, frontend) if given else None, evaluated, name


def _floats(frontend: Frontend, live: Any, setting: Setting) -> Plan:
    """Return the plan of a model that stays float, for its bytes."""
    nothing = Recipe([Rule("nothing", weight="int8 channel", optional=True)])
    storage_type, target = setting.storage_type, setting.target
    return resolve("", frontend.layers(live), frontend.floats(live), nothing, storage_type=storage_type, target=target)
