"""A row of codes to numbers on the CPU, 16 bytes of codes at a time.

What no compiler makes of a plain loop: bits stay in their bytes, each of them chooses between whole
vectors of levels, and nothing is looked up. Takes a quarter of the time of such a loop with codes
of 2 bits.
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


def _trellis_bits(builder: Any, now: Any, before: tuple[Any, Any], bits: int) -> tuple[Any, Any]:
    """y1 and y0 at the lowest bit of every code, see `trellis.py`."""
    last = (now, *before)

    def earlier(count: int) -> Any:
        """The bits of the channel `count` before."""
        byte, shift = divmod(count * bits, 8)
        if not shift:
            return last[byte]
        kept = builder.shl(last[byte], _all(shift))
        return builder.or_(kept, builder.lshr(last[byte + 1], _all(8 - shift)))

    y1 = builder.xor(builder.xor(now, earlier(1)), earlier(3))
    return y1, earlier(2)


def _choose(builder: Any, source: Any, bit: int, chosen: Any, otherwise: Any) -> Any:
    """Lane by lane, what a bit of a byte says."""
    is_set = builder.icmp_unsigned("!=", builder.and_(source, _all(bit)), _all(0))
    return builder.select(is_set, chosen, otherwise)


class _Row:
    """What one row is decoded from and to: pointers, and the levels of each plane."""

    def __init__(self, builder: Any, pointers: list[Any], size: Any, bits: int, trellis: bool):
        self.builder = builder
        self.packed, levels, scales, self.width, self.centroid, self.row = pointers
        self.size = size
        self.bits = bits
        self.trellis = trellis
        # Codes of a trellis have a sign, but for those of one bit.
        self.is_signed = trellis and bits > 1
        first, count = (2**bits, 2**bits) if self.is_signed else (0, 2 ** (bits + trellis))
        self.levels = []
        for plane in range(8 // bits):
            scale = builder.load(builder.gep(scales, [ir.Constant(_INDEX, plane)]))
            each = []
            for number in range(first, first + count):
                place = builder.gep(levels, [ir.Constant(_INDEX, number)])
                each.append(_spread(builder, builder.fmul(builder.load(place), scale)))
            self.levels.append(each)

    def sources(self, now: Any, before: tuple[Any, Any]) -> list[tuple[Any, int]]:
        """Bytes, and the bit of the first code in them, for each bit of a level's place."""
        if not self.trellis:
            return [(now, 1 << bit) for bit in range(self.bits)]
        builder = self.builder
        y1, y0 = _trellis_bits(builder, now, before, self.bits)
        found = [(y0, 1), (y1, 1), *((now, 1 << bit) for bit in range(1, self.bits))]
        if not self.is_signed:
            return found
        # Half of the levels are negative ones, in reverse: the code's highest bit is the sign, and
        # turns all others over.
        sign, turned = found.pop()[1].bit_length() - 1, []
        for source, bit in found:
            shift = sign - (bit.bit_length() - 1)
            over = builder.lshr(builder.not_(now), _all(shift))
            turned.append((builder.xor(source, over), bit))
        return turned

    def store(self, plane: int, byte: Any, value: Any) -> None:
        """Store levels times widths, plus the centroid."""
        builder = self.builder
        plane_start = builder.mul(self.size, ir.Constant(_INDEX, plane))
        index = builder.add(plane_start, byte)
        value = builder.fmul(value, _load(builder, self.width, index, _FLOATS, 4))
        value = builder.fadd(value, _load(builder, self.centroid, index, _FLOATS, 4))
        place = builder.bitcast(builder.gep(self.row, [index]), _FLOATS.as_pointer())
        builder.store(value, place, align=4)


def _decode_bytes(row: _Row, byte: Any, now: Any, before: tuple[Any, Any]) -> None:
    """16 bytes from `byte` on; `before` are the bytes one and two before each of them."""
    builder = row.builder
    sources = row.sources(now, before)
    for plane, levels in enumerate(row.levels):
        shift = plane * row.bits
        left = levels
        for source, bit in sources:
            pairs = zip(left[::2], left[1::2], strict=True)
            left = [_choose(builder, source, bit << shift, high, low) for low, high in pairs]
        (value,) = left
        if row.is_signed:
            sign = 1 << (row.bits - 1 + shift)
            value = _choose(builder, now, sign, value, builder.fneg(value))
        row.store(plane, byte, value)


def _decode_row(builder: Any, row: _Row) -> None:
    """The first 16 bytes, which have nothing before them, and a loop over the others."""
    zero = ir.Constant(_INDEX, 0)
    now = _load(builder, row.packed, zero, _BYTES, 1)

    def moved(count: int) -> Any:
        lanes = [*[LANES] * count, *range(LANES - count)]
        return builder.shuffle_vector(now, _all(0), ir.Constant(_NUMBERS, lanes))

    _decode_bytes(row, zero, now, (moved(1), moved(2)))
    start, loop = builder.block, builder.append_basic_block("bytes")
    after = builder.append_basic_block("all_bytes")
    step = ir.Constant(_INDEX, LANES)
    builder.cbranch(builder.icmp_signed("<", step, row.size), loop, after)
    builder.position_at_end(loop)
    byte = builder.phi(_INDEX)
    byte.add_incoming(step, start)
    now, one, two = (
        _load(builder, row.packed, builder.sub(byte, ir.Constant(_INDEX, back)), _BYTES, 1)
        for back in (0, 1, 2)
    )
    _decode_bytes(row, byte, now, (one, two))
    following = builder.add(byte, step)
    byte.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, row.size), loop, after)
    builder.position_at_end(after)


def _make_fill(bits: int, trellis: bool) -> Any:
    """A function for Numba code: levels times scales and widths, plus a centroid.

    packed: uint8 [size], size a multiple of `LANES`, at least one.
    levels: fp32, an entry for every code, or place in a trellis, also for codes that no row has.
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
        pointers = [array.data for array in arrays]
        _decode_row(builder, _Row(builder, pointers, num_bytes, bits, trellis))
        return context.get_dummy_value()

    return fill


fill_one_bit = _make_fill(1, False)
fill_two_bits = _make_fill(2, False)
fill_four_bits = _make_fill(4, False)
fill_one_bit_of_trellis = _make_fill(1, True)
fill_two_bits_of_trellis = _make_fill(2, True)
fill_four_bits_of_trellis = _make_fill(4, True)
