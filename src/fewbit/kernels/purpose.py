"""What a kernel is there for: the layers that it is to make faster, before anything is said of schemes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewbit.kernels import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """The layers that a kernel is for."""

    #: cpu, cuda, ...; `None`: any, of which the kernel says more.
    device: str | None
    #: Types of the inputs.
    dtypes: tuple[str, ...]
    #: Whether inputs are rounded.
    rounds: bool
    convolves: bool = False
    #: Up to how many rows of inputs it is faster than the float layer; `None`: however many.
    rows: int | None = None
    #: From how many products for each number of input and output on a convolution is faster than the float one, with
    #: the channels first and with the channels last.
    products: tuple[int, int] = (0, 0)
    #: Whether someone has measured that it is faster.
    measured: bool = True
    #: What it asks of processor and torch.
    needs: str

    def covers(self, request: Request) -> bool:
        """Whether such layers are its business, whatever the type of their numbers."""
        rounds, convolves = request.input is not None, request.window is not None
        return self.device in (None, request.device) and (self.rounds, self.convolves) == (rounds, convolves)

    def refusal(self, request: Request) -> str | None:
        """Return why such a layer is not its business, or `None`."""
        if not self.covers(request):
            return f"it is for {self.layers} on {self.device}, not for {request.layers} on {request.device}"
        if request.dtype not in self.dtypes:
            kinds = " or ".join(self.dtypes)
            return f"kernels for {self.layers} take {kinds} on {request.device}, not {request.dtype}"
        return None

    def slower(self, request: Request) -> str | None:
        """Return why it is not faster than the float layer there, though than dequantizing; `None`: it is."""
        if not self.measured:
            return f"nobody has measured it on {self.device} yet"
        if request.window is None:
            return None
        first, last = self.products
        found, least = request.window.products(request.shape), last if request.window.channels_last else first
        if found >= least:
            return None
        if found < last:
            return f"under {last} products a number are too few"
        remedy = f"{last} are with the channels last: model.to(memory_format=torch.channels_last)"
        return f"under {least} products a number are too few ({remedy})"

    @property
    def layers(self) -> str:
        """What it is for, in words."""
        return layers(rounds=self.rounds, convolves=self.convolves)

    @property
    def faster(self) -> str:
        """Where it is meant to be faster than the float layer, in words."""
        if self.rows:
            return f"for up to {self.rows} rows"
        first, last = self.products
        return (
            f"from {first} products a number on, {last} with the channels last" if first else "for any number of rows"
        )


def layers(*, rounds: bool, convolves: bool) -> str:
    """Return the layers that are meant, in words."""
    return f"{'convolutions' if convolves else 'products'} {'with rounded inputs' if rounds else 'of weights alone'}"
