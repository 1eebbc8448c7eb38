"""How much attention moves between cached and fresh tokens because keys are rounded.

Rounding keys changes the log-sum-exp of the scores over the cached tokens, and with it their share
of attention. For rows q and errors e = k - read k that are not correlated with what is read, it
falls by scale^2 |q|^2 var(e) / 2; for errors that are not correlated with k it rises by as much.
An offset for every query row, added to the log-sum-exp of the cached part before it is merged with
the chunk's own, would undo a shift that is known.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.format import PageFormat
from qvg_engine.quality.teacher_forced import Part, TeacherForced, merged

Offset = Literal["none", "formula", "energy", "matched", "best"]
OFFSETS: tuple[Offset, ...] = ("none", "formula", "energy", "matched", "best")
"""What is added to the log-sum-exp of a row over the cached tokens.

* "none": nothing.
* "formula": scale^2 |q|^2 var(e) / 2, var(e) being the mean squared error of a channel of the
  head's cached keys; subtracted for scales by absmax.
* "energy": the same with the energy that rounding has taken from the keys in place of var(e),
  which knows its sign.
* "matched": what makes it that of the exact keys. It needs them.
* "best": what makes the row's output least wrong of all offsets. It needs the exact output.
"""


class HeadShift(msgspec.Struct, frozen=True, kw_only=True):
    """The shift of one query head's log-sum-exp over the cached tokens, natural logarithms.

    `mean` and `spread` (standard deviation) are over the queries of all chunks, `formula` and
    `energy` the means that those predict, `correlation` that of the shift with |q|^2, to which both
    are proportional (0 where either does not vary).
    """

    layer: int
    head: int
    mean: float
    spread: float
    formula: float
    energy: float
    correlation: float


class LayerMass(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: its heads, and the relative error of attention's output under each offset."""

    heads: tuple[HeadShift, ...]
    errors: dict[Offset, float]


def measure_mass(
    forced: TeacherForced,
    page_format: PageFormat,
    *,
    exact: tuple[Tensor, Tensor],
    read: tuple[Tensor, Tensor],
    layer: int,
) -> LayerMass:
    """Shifts and errors of a format.

    Args:
        forced: the chunks that are looked at.
        page_format: how the rows were stored; tells the formula's sign.
        exact, read: K and V of the layer, [tokens, heads, head_dim] each, as they were captured and
            as they are read back.
        layer: its number, for the figures.
    """
    outputs: dict[Offset, dict[int, Tensor]] = {offset: {} for offset in OFFSETS}
    shifts, lengths, formulas, energies = [], [], [], []
    for chunk in forced.chunks:
        dense, coded = forced.cached(chunk, *exact), forced.cached(chunk, *read)
        shift = coded.lse - dense.lse
        length = forced.queries(chunk).square().sum(dim=-1)
        tokens = forced.seen(chunk)
        var_error, var_lost = _channel_variances(exact[0][tokens], read[0][tokens])
        group = length.shape[0] // var_error.shape[0]
        unit = forced.scale**2 * length / 2
        formula = -_sign(page_format) * unit * var_error.repeat_interleave(group)[:, None]
        energy = -unit * var_lost.repeat_interleave(group)[:, None]
        offsets = {"none": torch.zeros_like(shift), "formula": -formula, "energy": -energy}
        offsets["matched"] = -shift
        for name, offset in offsets.items():
            moved = Part(coded.out, coded.lse + offset)
            outputs[name][chunk] = merged(moved, forced.own(chunk))  # type: ignore[index]
        outputs["best"][chunk] = _best(coded, forced.own(chunk), forced.exact(chunk))
        shifts.append(shift)
        lengths.append(length)
        formulas.append(formula)
        energies.append(energy)
    heads = _heads(layer, *(torch.cat(x, dim=1) for x in (shifts, lengths, formulas, energies)))
    errors = {offset: forced.relative_error(outputs[offset]) for offset in OFFSETS}
    return LayerMass(heads=heads, errors=errors)


def gain(errors: Mapping[Offset, float], offset: Offset) -> float:
    """The part of the error that an offset takes away."""
    return 1 - errors[offset] / errors["none"]


def _sign(page_format: PageFormat) -> int:
    """1 where what is lost is not correlated with what is read, -1 with scales by absmax."""
    assert page_format.codec is not None
    return 1 if page_format.codec.scale_rule == "searched" else -1


def _channel_variances(exact: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """[heads] each: the mean square of the error of a channel, and the energy lost a channel."""
    exact, read = exact.double(), read.double()
    error = (exact - read).square().mean(dim=(0, 2))
    lost = (exact.square() - read.square()).mean(dim=(0, 2))
    return error.float(), lost.float()


def _best(cached: Part, own: Part, exact: Tensor) -> Tensor:
    """Of all outputs between the two parts', those nearest to the exact ones, row by row."""
    along, wanted = cached.out - own.out, exact - own.out
    share = (along * wanted).sum(dim=-1) / along.square().sum(dim=-1).clamp_min(1e-30)
    return own.out + share.clamp(0, 1)[..., None] * along


def _heads(
    layer: int, shift: Tensor, length: Tensor, formula: Tensor, energy: Tensor
) -> tuple[HeadShift, ...]:
    """Of [heads, queries] each."""
    return tuple(
        HeadShift(
            layer=layer,
            head=head,
            mean=float(shift[head].mean()),
            spread=float(shift[head].std()),
            formula=float(formula[head].mean()),
            energy=float(energy[head].mean()),
            correlation=_correlation(shift[head], length[head]),
        )
        for head in range(len(shift))
    )


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else 0.0
