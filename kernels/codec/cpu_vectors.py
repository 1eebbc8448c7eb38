"""Rows of codes to numbers on the CPU, 16 bytes of codes at a time, or 8.

What no compiler makes of a plain loop: bits stay in their bytes, each of them chooses between whole
vectors of levels, and nothing is looked up. Takes a quarter of the time of such a loop with codes
of 2 bits. Rows are found by their numbers, as Numba counts the references to every view.
"""

from typing import Any, Final, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

NO_KIND: Final = -1
"""The kind of rows that `fill_rows` cannot decode."""

_INDEX = ir.IntType(64)


class _Kind(NamedTuple):
    """What instructions are made for: so many centroids, 1 or 2, and `lanes` bytes at a time."""

    bits: int
    trellis: bool
    stages: int
    lanes: int


_KINDS: Final = tuple(
    _Kind(bits, trellis, stages, lanes)
    for lanes in (16, 8)
    for stages in (1, 2)
    for trellis in (False, True)
    for bits in (1, 2, 4)
)


@njit(nogil=True, cache=True)
def find_kind(bits: Any, trellis: Any, stages: Any, size: Any) -> Any:
    """Which of `_KINDS` rows are whose codes have `size` bytes, or `NO_KIND`; int64.

    Of more than two stages, `fill_rows` adds the first two.
    """
    if stages == 0 or size % 8 > 0:
        return NO_KIND
    kind = bits // 2 + (3 if trellis else 0) + (6 if stages > 1 else 0)
    return kind + (12 if size % 16 > 0 else 0)


class _Vectors:
    """Makes instructions for vectors of a number of lanes."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self._bytes = ir.VectorType(ir.IntType(8), lanes)
        self._floats = ir.VectorType(ir.FloatType(), lanes)

    def all(self, value: int) -> Any:
        """A byte in all lanes."""
        return ir.Constant(self._bytes, [value] * self.lanes)

    def spread(self, number: Any) -> Any:
        """A float in all lanes."""
        undefined = ir.Constant(self._floats, ir.Undefined)
        first = self.builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, first: Any, second: Any, lanes: list[int]) -> Any:
        """Some lanes of two vectors, the second one's counted on from the first one's."""
        numbers = ir.VectorType(ir.IntType(32), self.lanes)
        return self.builder.shuffle_vector(first, second, ir.Constant(numbers, lanes))

    def load_bytes(self, pointer: Any, index: Any) -> Any:
        return self.builder.load(self._place(pointer, index, self._bytes), align=1)

    def load_floats(self, pointer: Any, index: Any) -> Any:
        return self.builder.load(self._place(pointer, index, self._floats), align=4)

    def store_floats(self, value: Any, pointer: Any, index: Any) -> None:
        self.builder.store(value, self._place(pointer, index, self._floats), align=4)

    def choose(self, source: Any, bit: int, chosen: Any, otherwise: Any) -> Any:
        """Lane by lane, what a bit of a byte says."""
        found = self.builder.and_(source, self.all(bit))
        is_set = self.builder.icmp_unsigned("!=", found, self.all(0))
        return self.builder.select(is_set, chosen, otherwise)

    def _place(self, pointer: Any, index: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [index]), kind.as_pointer())


class _Codes:
    """Makes instructions that turn bytes into the levels that their codes mean."""

    def __init__(self, vectors: _Vectors, kind: _Kind, levels: Any) -> None:
        self.vectors = vectors
        self.bits = kind.bits
        self.trellis = kind.trellis
        # Codes of a trellis have a sign, but for those of one bit.
        self.is_signed = kind.trellis and kind.bits > 1
        first, last = 0, 2 ** (kind.bits + kind.trellis)
        if self.is_signed:
            first = last // 2
        numbers = (_element(vectors.builder, levels, _index(place)) for place in range(first, last))
        self.levels = [vectors.spread(number) for number in numbers]

    def choose_levels(self, now: Any, before: tuple[Any, Any]) -> list[Any]:
        """The levels of bytes, plane by plane; `before`: those one and two before each of them."""
        vectors, sources, chosen = self.vectors, self._sources(now, before), []
        for shift in range(0, 8, self.bits):
            left = self.levels
            for source, bit in sources:
                pairs = zip(left[::2], left[1::2], strict=True)
                left = [vectors.choose(source, bit << shift, high, low) for low, high in pairs]
            (value,) = left
            if self.is_signed:
                sign = 1 << (self.bits - 1 + shift)
                value = vectors.choose(now, sign, value, vectors.builder.fneg(value))
            chosen.append(value)
        return chosen

    def _sources(self, now: Any, before: tuple[Any, Any]) -> list[tuple[Any, int]]:
        """Bytes, and the bit of the first code in them, for each bit of a level's place."""
        if not self.trellis:
            return [(now, 1 << bit) for bit in range(self.bits)]
        y1, y0 = self._trellis_bits(now, before)
        found = [(y0, 1), (y1, 1), *((now, 1 << bit) for bit in range(1, self.bits))]
        if not self.is_signed:
            return found
        # Half of the levels are negative ones, in reverse: the code's highest bit is the sign, and
        # turns all others over.
        builder = self.vectors.builder
        sign, turned = found.pop()[1].bit_length() - 1, []
        for source, bit in found:
            shift = sign - (bit.bit_length() - 1)
            over = builder.lshr(builder.not_(now), self.vectors.all(shift))
            turned.append((builder.xor(source, over), bit))
        return turned

    def _trellis_bits(self, now: Any, before: tuple[Any, Any]) -> tuple[Any, Any]:
        """y1 and y0 at the lowest bit of every code, see `trellis.py`."""
        builder, last = self.vectors.builder, (now, *before)

        def earlier(count: int) -> Any:
            """The bits of the channel `count` before."""
            byte, shift = divmod(count * self.bits, 8)
            if not shift:
                return last[byte]
            kept = builder.shl(last[byte], self.vectors.all(shift))
            return builder.or_(kept, builder.lshr(last[byte + 1], self.vectors.all(8 - shift)))

        y1 = builder.xor(builder.xor(now, earlier(1)), earlier(3))
        return y1, earlier(2)


class _Row(NamedTuple):
    """What one row is decoded from and to: pointers, and vectors of the scale of each plane."""

    packed: Any
    scales: list[Any]
    width: Any
    centroids: list[Any]
    numbers: Any


def _index(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _element(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.load(builder.gep(pointer, [index]))


def _decode_bytes(
    codes: _Codes, row: _Row, size: Any, byte: Any, now: Any, before: tuple[Any, Any]
) -> None:
    """The bytes `now`, which are those from `byte` on, of `size`."""
    vectors, builder = codes.vectors, codes.vectors.builder
    for plane, value in enumerate(codes.choose_levels(now, before)):
        index = builder.add(byte, builder.mul(size, _index(plane)))
        value = builder.fmul(value, row.scales[plane])
        value = builder.fmul(value, vectors.load_floats(row.width, index))
        for centroid in row.centroids:
            value = builder.fadd(value, vectors.load_floats(centroid, index))
        vectors.store_floats(value, row.numbers, index)


def _decode_row(codes: _Codes, row: _Row, size: Any) -> None:
    """The first bytes, which have nothing before them, and a loop over the others."""
    vectors, builder, lanes = codes.vectors, codes.vectors.builder, codes.vectors.lanes
    first = vectors.load_bytes(row.packed, _index(0))

    def moved(count: int) -> Any:
        return vectors.shuffle(first, vectors.all(0), [*[lanes] * count, *range(lanes - count)])

    _decode_bytes(codes, row, size, _index(0), first, (moved(1), moved(2)))
    step = _index(lanes)
    with cgutils.for_range_slice(builder, step, size, step, inc=True) as (byte, _):
        now, one, two = (
            vectors.load_bytes(row.packed, builder.sub(byte, _index(back))) for back in range(3)
        )
        _decode_bytes(codes, row, size, byte, now, (one, two))


class _Arrays(NamedTuple):
    """The arrays that `fill_rows` is given."""

    packed: Any
    levels: Any
    scales: Any
    groups: Any
    width: Any
    first_ids: Any
    first: Any
    second_ids: Any
    second: Any
    rows: Any


def _decode_rows(builder: Any, arrays: _Arrays, kind: _Kind, begin: Any, end: Any) -> None:
    """A loop over rows of one kind."""
    codes = _Codes(_Vectors(builder, kind.lanes), kind, arrays.levels.data)
    size = builder.extract_value(arrays.packed.shape, 1)
    groups = [_element(builder, arrays.groups.data, _index(i)) for i in range(8 // kind.bits)]
    stages = [(arrays.first_ids, arrays.first), (arrays.second_ids, arrays.second)][: kind.stages]

    def find_row(array: Any, number: Any) -> Any:
        length = builder.extract_value(array.shape, 1)
        return builder.gep(array.data, [builder.mul(number, length)])

    with cgutils.for_range_slice(builder, begin, end, _index(1), inc=True) as (slot, _):
        place = builder.sub(slot, begin)
        scales = find_row(arrays.scales, place)
        ids = [_element(builder, stage_ids.data, slot) for stage_ids, _ in stages]
        row = _Row(
            packed=find_row(arrays.packed, slot),
            scales=[codes.vectors.spread(_element(builder, scales, group)) for group in groups],
            width=arrays.width.data,
            centroids=[
                find_row(centroids, builder.zext(number, _INDEX))
                for number, (_, centroids) in zip(ids, stages, strict=True)
            ],
            numbers=find_row(arrays.rows, place),
        )
        _decode_row(codes, row, size)


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The instructions of `fill_rows`: a loop for every kind, one of which is run."""
    wanted, begin, end, *values = args
    made = (
        context.make_array(kind)(context, builder, value)
        for kind, value in zip(signature.args[3:], values, strict=True)
    )
    arrays = _Arrays(*made)
    no_kind, done = builder.append_basic_block("no_kind"), builder.append_basic_block("done")
    switch = builder.switch(wanted, no_kind)
    for number, kind in enumerate(_KINDS):
        block = builder.append_basic_block("kind")
        switch.add_case(ir.Constant(wanted.type, number), block)
        builder.position_at_end(block)
        _decode_rows(builder, arrays, kind, begin, end)
        builder.branch(done)
    builder.position_at_end(no_kind)
    builder.unreachable()
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def fill_rows(
    typing_context: Any,
    kind: Any,
    begin: Any,
    end: Any,
    packed: Any,
    levels: Any,
    scales: Any,
    groups: Any,
    width: Any,
    first_ids: Any,
    first: Any,
    second_ids: Any,
    second: Any,
    rows: Any,
) -> Any:
    """For Numba code: levels times scales and widths, plus one centroid or two.

    kind: of `find_kind`, not `NO_KIND`. begin, end: the slots that are decoded. All int64.
    packed: uint8 [slots, size].
    levels: fp32, an entry for every code, or place in a trellis, also for codes that no row has.
    scales: fp32 [end - begin, groups]; groups: int64 [planes], the group of each plane.
    width: fp32 [head_dim].
    first_ids, second_ids: uint8 [slots]; first, second: fp32 [centroids, head_dim]. Kinds of one
        stage do not read the second ones.
    rows: fp32 [end - begin, head_dim], which is written.
    All are contiguous, arrays may have more rows, and no bound is checked.
    """
    arrays = (packed, levels, scales, groups, width, first_ids, first, second_ids, second, rows)
    return types.void(kind, begin, end, *arrays), _generate
