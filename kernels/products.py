"""Matrix products on the CPU: where k-means and attention spend their time.

A tile is `TILE` columns side by side, channel by channel. Compiled code takes `ROWS` rows and a
tile, or the first half of one where there are no more columns, and keeps all their sums in vector
registers from the first channel to the last: what no compiler makes of a plain loop. A library's
matrix product would do, but has threads of its own, adds in an order that may depend on them, and
costs more than the product itself where that is small.
"""

from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

_HAS_AVX512 = bool(binding.get_host_cpu_features().get("avx512f", False))
# A row's sums fill two vectors; 16 sums of 512 bits leave half of the registers to the factors, and
# so do 8 of 256 bits, or of two times 128.
HALF_TILE = 16 if _HAS_AVX512 else 8
"""Columns of a vector."""
ROWS = 8 if _HAS_AVX512 else 4
"""Rows that are multiplied at a time."""
TILE = 2 * HALF_TILE
"""Columns that are multiplied at a time."""

_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), HALF_TILE)
# A product may be added without being rounded.
_FUSED = ("contract",)


def _broadcast(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = ir.Constant(ir.IntType(32), 0)
    no_shuffle = ir.Constant(ir.VectorType(ir.IntType(32), HALF_TILE), [0] * HALF_TILE)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, first), undefined, no_shuffle
    )


def _vector_pointers(builder: Any, pointer: Any, num_vectors: int) -> list[Any]:
    """To as many vectors from `pointer` on."""
    firsts = (ir.Constant(_INDEX, vector * HALF_TILE) for vector in range(num_vectors))
    starts = (builder.gep(pointer, [first]) for first in firsts)
    return [builder.bitcast(start, _VECTOR.as_pointer()) for start in starts]


def _build_loop(
    builder: Any, rows: list[Any], channel_step: Any, tile: Any, num_vectors: int, channels: Any
) -> list[list[Any]]:
    """Emit the loop over channels; the sums, a list of vectors for each of the rows."""
    before = builder.block
    loop = builder.append_basic_block("channel")
    after = builder.append_basic_block("all_channels")
    builder.branch(loop)
    builder.position_at_end(loop)
    channel = builder.phi(_INDEX)
    channel.add_incoming(ir.Constant(_INDEX, 0), before)
    sums = [[builder.phi(_VECTOR) for _ in range(num_vectors)] for _ in rows]
    start = builder.gep(tile, [builder.mul(channel, ir.Constant(_INDEX, TILE))])
    pointers = _vector_pointers(builder, start, num_vectors)
    factors = [builder.load(pointer, align=4) for pointer in pointers]
    offset = builder.mul(channel, channel_step)
    added: list[list[Any]] = []
    for row, row_sums in zip(rows, sums, strict=True):
        value = _broadcast(builder, builder.load(builder.gep(row, [offset])))
        products = [builder.fmul(value, factor, flags=_FUSED) for factor in factors]
        pairs = zip(row_sums, products, strict=True)
        added.append([builder.fadd(total, product, flags=_FUSED) for total, product in pairs])
        for total, result in zip(row_sums, added[-1], strict=True):
            total.add_incoming(ir.Constant(_VECTOR, [0.0] * HALF_TILE), before)
            total.add_incoming(result, loop)
    following = builder.add(channel, ir.Constant(_INDEX, 1))
    channel.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, channels), loop, after)
    builder.position_at_end(after)
    return added


def _make_multiply(num_vectors: int) -> Any:
    """A function for Numba code: `ROWS` rows times the first vectors of a tile.

    products[first_product + r * product_step + c]
        = sum over i of rows[first + r * row_step + i * channel_step]
                        * tiles[first_factor + i * TILE + c]

    rows, tiles, products: fp32, contiguous, of any shape: the indices count their elements.
    `channels` is at least 1, and no bound is checked.
    """

    @intrinsic
    def multiply_tile(
        typing_context: Any,
        rows: Any,
        first: Any,
        row_step: Any,
        channel_step: Any,
        tiles: Any,
        first_factor: Any,
        products: Any,
        first_product: Any,
        product_step: Any,
        channels: Any,
    ) -> Any:
        index = types.int64
        signature = types.void(
            rows, index, index, index, tiles, index, products, index, index, index
        )
        return signature, generate

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, tiles, products = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4, 6)
        )
        (
            _,
            first,
            row_step,
            channel_step,
            _,
            first_factor,
            _,
            first_product,
            product_step,
            channels,
        ) = args

        def at(pointer: Any, first: Any, step: Any, count: int) -> Any:
            offset = builder.mul(step, ir.Constant(_INDEX, count))
            return builder.gep(pointer, [builder.add(first, offset)])

        starts = [at(rows, first, row_step, row) for row in range(ROWS)]
        tile = builder.gep(tiles, [first_factor])
        sums = _build_loop(builder, starts, channel_step, tile, num_vectors, channels)
        for row, row_sums in enumerate(sums):
            start = at(products, first_product, product_step, row)
            pointers = _vector_pointers(builder, start, num_vectors)
            for total, pointer in zip(row_sums, pointers, strict=True):
                builder.store(total, pointer, align=4)
        return context.get_dummy_value()

    return multiply_tile


multiply_tile = _make_multiply(2)
_multiply_half_tile = _make_multiply(1)


@njit(nogil=True, cache=True)
def multiply(rows: Any, first: Any, count: Any, tiles: Any, products: Any) -> None:
    """The products of `count` rows, from `first` on, with all columns of some tiles.

    rows: fp32 [rows, head_dim], contiguous; there are rows up to `first + count` rounded up to
        whole `ROWS`.
    tiles: fp32 [tiles, head_dim, TILE], contiguous.
    products: fp32 [., columns], contiguous, of `count` rows rounded up likewise. The number of
        columns is tiles * TILE, or HALF_TILE less.
    """
    head_dim, row_size = rows.shape[1], products.shape[1]
    for tile in range(row_size // TILE):
        factor = tile * head_dim * TILE
        for row in range(0, count, ROWS):
            source, target = (first + row) * head_dim, row * row_size + tile * TILE
            multiply_tile(
                rows, source, head_dim, 1, tiles, factor, products, target, row_size, head_dim
            )
    if row_size % TILE:
        tile = row_size // TILE
        factor = tile * head_dim * TILE
        for row in range(0, count, ROWS):
            source, target = (first + row) * head_dim, row * row_size + tile * TILE
            _multiply_half_tile(
                rows, source, head_dim, 1, tiles, factor, products, target, row_size, head_dim
            )
