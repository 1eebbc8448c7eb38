"""A row of codes of 1 or 2 bits to numbers on the CPU, 16 bytes of codes at a time.

What no compiler makes of a plain loop: bits stay in their bytes, each of them chooses between whole
vectors of levels, and nothing is looked up. Takes a third of the time of the loops in
`cpu_trellis.py`, and less than half of that of those in `cpu.py`.
"""

from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES: Final = 16
"""Bytes that are decoded at a time; rows must be whole multiples of as many."""

_INDEX = ir.IntType(64)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_NUMBERS = ir.VectorType(ir.IntType(32), LANES)


def _all(value: int) -> Any:
    return ir.Constant(_BYTES, [value] * LANES)


def _spread(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_NUMBERS, [0] * LANES))


def _load(builder: Any, pointer: Any, index: Any, kind: Any, align: int) -> Any:
    place = builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())
    return builder.load(place, align=align)


def _trellis_bits(builder: Any, now: Any, before: Any, bits: int) -> tuple[Any, Any]:
    """y1 and y0 at the lowest bit of every code, see `trellis.py`."""

    def earlier(count: int) -> Any:
        """The bits of the channel `count` before."""
        shift = count * bits
        kept = builder.shl(now, _all(shift))
        return builder.or_(kept, builder.lshr(before, _all(8 - shift)))

    y1 = builder.xor(builder.xor(now, earlier(1)), earlier(3))
    return y1, earlier(2)


def _choose(builder: Any, source: Any, bit: int, chosen: Any, otherwise: Any) -> Any:
    """Lane by lane, what a bit of a byte says."""
    is_set = builder.icmp_unsigned("!=", builder.and_(source, _all(bit)), _all(0))
    return builder.select(is_set, chosen, otherwise)


class _Row:
    """What one row is decoded from and to: pointers, and the levels of each plane."""

    def __init__(self, builder: Any, pointers: list[Any], size: Any, bits: int, first: int) -> None:
        self.builder = builder
        self.packed, levels, scales, self.width, self.centroid, self.row = pointers
        self.size = size
        self.levels = []
        for plane in range(8 // bits):
            scale = builder.load(builder.gep(scales, [ir.Constant(_INDEX, plane)]))
            each = []
            for number in range(4):
                place = builder.gep(levels, [ir.Constant(_INDEX, first + number)])
                each.append(_spread(builder, builder.fmul(builder.load(place), scale)))
            self.levels.append(each)

    def store(self, plane: int, byte: Any, value: Any) -> None:
        """Store levels times widths, plus the centroid."""
        builder = self.builder
        plane_start = builder.mul(self.size, ir.Constant(_INDEX, plane))
        index = builder.add(plane_start, byte)
        value = builder.fmul(value, _load(builder, self.width, index, _FLOATS, 4))
        value = builder.fadd(value, _load(builder, self.centroid, index, _FLOATS, 4))
        place = builder.bitcast(builder.gep(self.row, [index]), _FLOATS.as_pointer())
        builder.store(value, place, align=4)


def _decode_bytes(row: _Row, byte: Any, now: Any, before: Any, bits: int, trellis: bool) -> None:
    """16 bytes from `byte` on; `before` are the bytes before each of them."""
    builder = row.builder
    if trellis:
        high, low = _trellis_bits(builder, now, before, bits)
    else:
        high, low = builder.lshr(now, _all(1)), now
    is_signed = trellis and bits == 2
    if is_signed:
        # Half of the levels are negative ones, in reverse: the code's upper bit is the sign, and
        # turns the other two over.
        turned = builder.lshr(builder.not_(now), _all(1))
        high, low = builder.xor(high, turned), builder.xor(low, turned)
    for plane, (level_0, level_1, level_2, level_3) in enumerate(row.levels):
        bit = 1 << (plane * bits)
        lower = _choose(builder, low, bit, level_1, level_0)
        upper = _choose(builder, low, bit, level_3, level_2)
        value = _choose(builder, high, bit, upper, lower)
        if is_signed:
            value = _choose(builder, now, 2 * bit, value, builder.fneg(value))
        row.store(plane, byte, value)


def _decode_row(builder: Any, row: _Row, bits: int, trellis: bool) -> None:
    """The first 16 bytes, which have nothing before them, and a loop over the others."""
    zero = ir.Constant(_INDEX, 0)
    now = _load(builder, row.packed, zero, _BYTES, 1)
    moved = ir.Constant(_NUMBERS, [LANES, *range(LANES - 1)])
    before = builder.shuffle_vector(now, _all(0), moved)
    _decode_bytes(row, zero, now, before, bits, trellis)
    start, loop = builder.block, builder.append_basic_block("bytes")
    after = builder.append_basic_block("all_bytes")
    step = ir.Constant(_INDEX, LANES)
    builder.cbranch(builder.icmp_signed("<", step, row.size), loop, after)
    builder.position_at_end(loop)
    byte = builder.phi(_INDEX)
    byte.add_incoming(step, start)
    now = _load(builder, row.packed, byte, _BYTES, 1)
    last = builder.sub(byte, ir.Constant(_INDEX, 1))
    before = _load(builder, row.packed, last, _BYTES, 1)
    _decode_bytes(row, byte, now, before, bits, trellis)
    following = builder.add(byte, step)
    byte.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, row.size), loop, after)
    builder.position_at_end(after)


def _make_fill(bits: int, trellis: bool) -> Any:
    """A function for Numba code: levels times scales and widths, plus a centroid.

    packed: uint8 [size], size a multiple of `LANES`, at least one.
    levels: fp32, an entry for every code, or place in a trellis; four of them for codes of 2 bits.
    scales: fp32 [planes]; width, centroid, row: fp32 [head_dim]. All are contiguous, and no bound
    is checked.
    """

    @intrinsic
    def fill(
        typing_context: Any,
        packed: Any,
        levels: Any,
        scales: Any,
        width: Any,
        centroid: Any,
        row: Any,
    ) -> Any:
        return types.void(packed, levels, scales, width, centroid, row), generate

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        num_bytes = builder.extract_value(arrays[0].shape, 0)
        first = 4 if trellis and bits == 2 else 0
        row = _Row(builder, [array.data for array in arrays], num_bytes, bits, first)
        _decode_row(builder, row, bits, trellis)
        return context.get_dummy_value()

    return fill


fill_two_bits = _make_fill(2, False)
fill_two_bits_of_trellis = _make_fill(2, True)
fill_one_bit_of_trellis = _make_fill(1, True)
