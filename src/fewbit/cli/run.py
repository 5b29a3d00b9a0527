"""A quantization that the command line asks for: planned, shown, carried out, measured, written."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.byte_size import byte_size
from fewbit.calibration import Calibration
from fewbit.checkpoints.folder import require_room
from fewbit.checkpoints.new_file import require_free_output
from fewbit.cli.console import Terminal
from fewbit.cli.plan_table import plan_table
from fewbit.cli.samples import measuring_on
from fewbit.errors import FewbitWarning, RecipeError
from fewbit.execution.executor import Place
from fewbit.execution.in_process import InProcess
from fewbit.part_names import whole_of
from fewbit.samples.files import Samples

if TYPE_CHECKING:
    from fewbit.allocation.allocation import Allocation
    from fewbit.cli.allocation import Search
    from fewbit.planning import Plan
    from fewbit.recipe import Recipe
    from fewbit.result import Result


@dataclass(frozen=True, kw_only=True)
class Run:
    """A quantization asked for on the command line."""

    model: str
    recipe: Recipe
    output: Path
    to: str = "compressed-tensors"
    dtype: str = "auto"
    text: str | None = None
    sequences: int = 4
    length: int = 512
    overwrite: bool = False
    device: str = "auto"
    seed: int = 0
    #: The command line, for the report.
    command: str | None = None
    calibration: Calibration = field(default_factory=lambda: Calibration(data="self"))
    #: What to measure on instead of a text.
    evaluation: Samples | None = None
    #: The most bytes in a file, as it was written.
    shard_size: str | None = None
    #: An importance matrix instead of calibration.
    importance: Path | None = None
    executor: Place = field(default_factory=InProcess)

    def carry_out(self, terminal: Terminal, search: Search | None = None) -> tuple[Result, Path]:
        """Plan, quantize, measure and write; what can be refused is refused before the model is loaded.

        With a `search` the recipe is what it finds.

        Returns:
            The result, and where it is: `output`, or the first of the files that it was divided into.

        """
        self._refuse()
        if search is not None:
            found = search.carried_out(self, terminal)
            result, written = replace(self, recipe=found.recipe)._carried_out(terminal, found)
            return result, written
        return self._carried_out(terminal, None)

    def plan(self) -> Plan:
        """Return the plan, with its problems if there are any."""
        import fewbit as fb

        return fb.plan(
            self.model, self.recipe, to=self.to, dtype=self.dtype, importance=self.importance,
            calibration=self.calibration if self.importance is None else None,
        )  # fmt: skip

    def _carried_out(self, terminal: Terminal, found: Allocation | None) -> tuple[Result, Path]:
        made = self._planned(terminal)
        with terminal.phase("plan"):
            import fewbit as fb
            from fewbit.no_data import NoData
            from fewbit.overflow import needs_check
            from fewbit.solving import needs_data
        nothing = self.importance is None and NoData.of(self.calibration) is not None
        calibrates = nothing or needs_data(made)
        own_data = self.calibration.data != "self"
        result = fb.quantize(
            self.model,
            self.recipe,
            to=self.to,
            dtype=self.dtype,
            calibration=self.calibration if calibrates or (own_data and needs_check(made)) else None,
            evaluation=self._evaluation(calibrates=calibrates),
            importance=self.importance,
            options=fb.Options(
                device=self.device, seed=self.seed, progress=terminal, command=self.command, executor=self.executor
            ),
        )
        result = found.reported(result) if found else result
        written = self._written(result, terminal)
        return result, written if whole_of(written) != written else self.output

    def _refuse(self) -> None:
        """Raise for an output that cannot be, before any work."""
        if self.shard_size is not None:
            byte_size(self.shard_size)
        self.executor.require()
        if is_onnx(self.model) and self.output.suffix != ".onnx":
            raise RecipeError(f"{self.model} becomes an ONNX file: end the output in .onnx, not {self.output}")
        if self.output.exists() and self.output.resolve() == Path(self.model).resolve():
            raise RecipeError(f"{self.output} is the model that is read; write to another folder")
        require_free_output(self.output, overwrite=self.overwrite, parts=self.shard_size is not None)

    def _planned(self, terminal: Terminal) -> Plan:
        """Show the plan and return it; raise its problems."""
        with terminal.phase("plan"):
            made = self.plan()
        made.require_sound()
        require_room(self.output, made.bytes_after)
        say_plan(made, terminal)
        terminal.say("")
        return made

    def _written(self, result: Result, terminal: Terminal) -> Path:
        """Write the result and return where; what is warned of goes to stderr."""
        with terminal.phase("write"), warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always", FewbitWarning)
            written = result.save(self.output, self.to, overwrite=self.overwrite, shard_size=self.shard_size)
        for text in dict.fromkeys(str(own.message) for own in noticed if issubclass(own.category, FewbitWarning)):
            sys.stderr.write(f"warning: {text}\n")
        return written

    def measured_on(self) -> Any:
        """Return what a search measures whole models on; `None`: the calibration data."""
        return self._evaluation(calibrates=True)

    def _evaluation(self, *, calibrates: bool) -> Any:
        import fewbit as fb

        if self.evaluation is not None:
            return fb.Evaluation(batches=self.evaluation)
        if self.text == "none":
            return None
        from fewbit.evaluation.text import read_text, token_sequences
        from fewbit.sources import open_source

        text, name = read_text(self.text)
        tokenizer = open_source(self.model).tokenizer()
        if tokenizer is None and self.text is None:
            return measuring_on(self.calibration, calibrates=calibrates)
        batches = token_sequences(tokenizer, text, sequences=self.sequences, length=self.length)
        if self.device != "auto":
            from fewbit.frontends.torch.frontend import TorchFrontend

            batches = [TorchFrontend().place(batch, self.device) for batch in batches]
        return fb.Evaluation(batches=batches, name=name)


def say_plan(made: Plan, terminal: Terminal) -> None:
    """Print what a plan does, what it adapted, and its hints."""
    terminal.say(plan_table(made))
    for adaptation in made.adaptations:
        terminal.say(f"adapted: {adaptation}")
    for hint in made.hints:
        terminal.say(f"hint: {hint}")


def is_onnx(model: str) -> bool:
    """Whether the command line names an ONNX file."""
    return model.endswith(".onnx")
