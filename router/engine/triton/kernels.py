"""The kernels themselves, in Triton. Shapes as in `router.engine.ops`; all that is read is contiguous.

Tiles have fixed sizes and each row's sums a fixed order, so that a row's result is the same in any batch.
`WIDE`: products of float32 numbers in full; the interpreter, which multiplies no bfloat16, takes this way.
What changes from step to step is not specialised: nothing is compiled while requests wait.
"""

# Annotations stay what they are here: Triton reads them.

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, residual, weight, out, width, eps, ADD: tl.constexpr, WIDTH: tl.constexpr):
    """A row a program: out = x / rms(x) * weight; with `ADD` of residual + x, which residual becomes."""
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, WIDTH)
    here = at < width
    values = tl.load(x + row + at, mask=here, other=0.0)
    if ADD:
        before = tl.load(residual + row + at, mask=here, other=0.0)
        values = (before.to(tl.float32) + values.to(tl.float32)).to(out.dtype.element_ty)
        tl.store(residual + row + at, values, mask=here)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = wide * scale * tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row + at, normed.to(out.dtype.element_ty), mask=here)


@triton.jit
def silu_mul(gate_up, out, inner, TILE: tl.constexpr):
    """A tile of a row a program: out = silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    here = at < inner
    gate = tl.load(gate_up + row * 2 * inner + at, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * inner + at, mask=here, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # of the size that cannot overflow
    gated = gate * tl.where(gate < 0.0, small, 1.0) / (1.0 + small) * up
    tl.store(out + row * inner + at, gated.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["heads", "kv_heads"])
def rope_write(
    qkv,
    cos,
    sin,
    k_cache,
    v_cache,
    positions,
    slots,
    heads,
    kv_heads,
    dim,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A head of a token a program: q and k are turned in place, k and v go to the cache."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = dim // 2
    at = tl.arange(0, HALF)
    here = at < half
    place = qkv + (token * (heads + 2 * kv_heads) + head) * dim + at
    first, second = tl.load(place, mask=here, other=0.0), tl.load(place + half, mask=here, other=0.0)
    if head < heads + kv_heads:
        angle = tl.load(positions + token).to(tl.int64) * dim + at
        one, two = first.to(tl.float32), second.to(tl.float32)
        turned = one * tl.load(cos + angle, mask=here) - two * tl.load(sin + angle, mask=here)
        rest = two * tl.load(cos + angle + half, mask=here) + one * tl.load(sin + angle + half, mask=here)
        first, second = turned.to(first.dtype), rest.to(second.dtype)
        tl.store(place, first, mask=here)
        tl.store(place + half, second, mask=here)
    if head >= heads:
        slot = tl.load(slots + token).to(tl.int64)
        kv_head = (head - heads) % kv_heads
        line = ((slot // BLOCK * kv_heads + kv_head) * BLOCK + slot % BLOCK) * dim + at
        if head < heads + kv_heads:
            tl.store(k_cache + line, first, mask=here)
            tl.store(k_cache + line + half, second, mask=here)
        else:
            tl.store(v_cache + line, first, mask=here)
            tl.store(v_cache + line + half, second, mask=here)


@triton.jit(
    do_not_specialize=["table_stride", "group", "kv_heads", "splits"],
    do_not_specialize_on_alignment=["table", "context"],
)
def decode_splits(
    q,
    k_cache,
    v_cache,
    table,
    context,
    parts,
    sums,
    q_stride,
    table_stride,
    dim,
    group,
    kv_heads,
    splits,
    scale,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One row, kv head and split of its context a program; the query heads of a kv head go together.

    parts [rows, heads, splits, dim]: sums of weighted values; sums [rows, heads, splits, 2]: largest score,
    sum of weights. Splits behind the context are not written.
    """
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(context + row)
    if split * SPLIT < length:
        member, d, n = tl.arange(0, GROUP), tl.arange(0, DIM), tl.arange(0, TILE)
        head = kv_head * group + member
        asked = (member < group)[:, None] & (d < dim)[None]
        queries = tl.load(q + row * q_stride + head[:, None] * dim + d[None], mask=asked, other=0.0)
        if WIDE:
            queries = queries.to(tl.float32)
        most = tl.full([GROUP], float("-inf"), tl.float32)
        total = tl.zeros([GROUP], tl.float32)
        mean = tl.zeros([GROUP, DIM], tl.float32)
        for at in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, length), TILE):
            place = at + n
            seen = place < length
            block = tl.load(table + row * table_stride + place // BLOCK, mask=seen, other=0).to(tl.int64)
            line = ((block * kv_heads + kv_head) * BLOCK + place % BLOCK) * dim
            full = seen[:, None] & (d < dim)[None]
            k = tl.load(k_cache + line[:, None] + d[None], mask=full, other=0.0)
            v = tl.load(v_cache + line[:, None] + d[None], mask=full, other=0.0)
            if WIDE:
                k, v = k.to(tl.float32), v.to(tl.float32)
            scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
            scores = tl.where(seen[None], scores, float("-inf"))
            larger = tl.maximum(most, tl.max(scores, axis=1))
            weights, kept = tl.exp(scores - larger[:, None]), tl.exp(most - larger)
            total = total * kept + tl.sum(weights, axis=1)
            mean = mean * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            most = larger
        part = (row * kv_heads * group + head) * splits + split
        tl.store(parts + part[:, None] * dim + d[None], mean, mask=asked)
        tl.store(sums + part * 2, most, mask=member < group)
        tl.store(sums + part * 2 + 1, total, mask=member < group)


@triton.jit(do_not_specialize=["heads", "splits"], do_not_specialize_on_alignment=["context"])
def decode_join(parts, sums, context, out, heads, splits, dim, DIM: tl.constexpr, SPLIT: tl.constexpr):
    """A head of a row a program: its splits become one mean; 0 where the context is empty."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(context + row)
    d = tl.arange(0, DIM)
    here = d < dim
    most, total = float("-inf"), 0.0
    mean = tl.zeros([DIM], tl.float32)
    for split in range(0, (length + SPLIT - 1) // SPLIT):
        part = (row * heads + head) * splits + split
        larger = tl.maximum(most, tl.load(sums + part * 2))
        kept, gained = tl.exp(most - larger), tl.exp(tl.load(sums + part * 2) - larger)
        total = total * kept + tl.load(sums + part * 2 + 1) * gained
        mean = mean * kept + tl.load(parts + part * dim + d, mask=here, other=0.0) * gained
        most = larger
    mean = tl.where(length > 0, mean / tl.where(length > 0, total, 1.0), 0.0)
    tl.store(out + (row * heads + head) * dim + d, mean.to(out.dtype.element_ty), mask=here)


@triton.jit(
    do_not_specialize=["tokens", "layers", "columns", "rank_tiles"],
    do_not_specialize_on_alignment=["starts", "table"],
)
def lora_shrink(
    x,
    z,
    starts,
    table,
    tokens,
    width,
    layers,
    columns,
    rank_tiles,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    INNER: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """z = x @ a.T: some tokens of a group, some rows of its a and a split of the inputs a program.

    z [splits, tokens, columns] float32; a group of rank r fills layers * r columns of its own tokens.
    """
    group, split, tile = tl.program_id(2), tl.program_id(1) // rank_tiles, tl.program_id(1) % rank_tiles
    start = tl.load(starts + group) + tl.program_id(0) * ROWS
    stop = tl.load(starts + group + 1)
    used = tl.load(table + group * 3 + 2).to(tl.int32) * layers
    if (start < stop) & (tile * RANKS < used):
        a = tl.multiple_of(tl.load(table + group * 3).to(tl.pointer_type(x.dtype.element_ty)), 16)
        rows, column = start + tl.arange(0, ROWS), tile * RANKS + tl.arange(0, RANKS)
        total = tl.zeros([ROWS, RANKS], tl.float32)
        for at in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, width), INNER):
            inner = at + tl.arange(0, INNER)
            given = (rows < stop)[:, None] & (inner < width)[None]
            held = (column < used)[:, None] & (inner < width)[None]
            xs = tl.load(x + rows.to(tl.int64)[:, None] * width + inner[None], mask=given, other=0.0)
            weights = tl.load(a + column[:, None] * width + inner[None], mask=held, other=0.0)
            if WIDE:
                xs, weights = xs.to(tl.float32), weights.to(tl.float32)
            total += tl.dot(xs, tl.trans(weights), input_precision="ieee")
        line = (split * tokens + rows).to(tl.int64) * columns
        tl.store(z + line[:, None] + column[None], total, mask=(rows < stop)[:, None] & (column < used)[None])


@triton.jit(
    do_not_specialize=["tokens", "columns", "splits"], do_not_specialize_on_alignment=["starts", "table"]
)
def lora_expand(
    y,
    z,
    starts,
    table,
    tokens,
    outs,
    second,
    third,
    columns,
    splits,
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """y += z @ b.T: some tokens of a group and some columns of y a program; products in float32.

    The layers of a site group begin at the columns 0, `second` and `third`.
    """
    group = tl.program_id(2)
    start = tl.load(starts + group) + tl.program_id(0) * ROWS
    stop = tl.load(starts + group + 1)
    rank = tl.multiple_of(tl.load(table + group * 3 + 2).to(tl.int32), 2)
    if (start < stop) & (rank > 0):
        b = tl.multiple_of(tl.load(table + group * 3 + 1).to(tl.pointer_type(y.dtype.element_ty)), 16)
        rows = start + tl.arange(0, ROWS)
        low = tl.program_id(1) * TILE
        out = low + tl.arange(0, TILE)
        layer = (out >= second).to(tl.int32) + (out >= third).to(tl.int32)
        total = tl.zeros([ROWS, TILE], tl.float32)
        for index in tl.static_range(LAYERS):
            mine = (out < outs) & (layer == index)
            if tl.max(mine.to(tl.int32), axis=0) > 0:
                for at in range(0, rank, RANKS):
                    j = at + tl.arange(0, RANKS)
                    given = (rows < stop)[:, None] & (j < rank)[None]
                    zs = tl.zeros([ROWS, RANKS], tl.float32)
                    for split in range(0, splits):
                        line = (split * tokens + rows).to(tl.int64) * columns + index * rank
                        zs += tl.load(z + line[:, None] + j[None], mask=given, other=0.0)
                    held = mine[:, None] & (j < rank)[None]
                    weights = tl.load(b + out.to(tl.int64)[:, None] * rank + j[None], mask=held, other=0.0)
                    total += tl.dot(zs, tl.trans(weights.to(tl.float32)), input_precision="ieee")
        place = y + rows.to(tl.int64)[:, None] * outs + out[None]
        here = (rows < stop)[:, None] & (out < outs)[None]
        before = tl.load(place, mask=here, other=0.0).to(tl.float32)
        tl.store(place, (before + total).to(y.dtype.element_ty), mask=here)
