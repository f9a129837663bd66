"""What the kernels over tiles of similarities share: which tile a program has, its dot products, its mask."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Put in place of similarities that are no negatives: far below them all, yet 0 times it is 0.
NOTHING = tl.constexpr(-1e30)

# Tiles that run at the same time should share operands in L2: programs go through this many rows of tiles together.
GROUP = tl.constexpr(16)


def programs(row_tiles: int, col_tiles: int, diagonal: bool) -> int:
    """Programs that ``tile_of_program`` needs: on the diagonal those of a triangle, with an odd side rounded up."""
    if not diagonal:
        return row_tiles * col_tiles
    even = row_tiles + row_tiles % 2
    return even // 2 * (even + 1)


@triton.jit
def tile_of_program(row_tiles, col_tiles, DIAGONAL: tl.constexpr):
    """(it, jt) of this program. With DIAGONAL it <= jt, and jt may be col_tiles: no tile then.

    The triangle is folded into a rectangle: its rows r and n - 1 - r together have n + 1 tiles.
    """
    pid = tl.program_id(0)
    if DIAGONAL:
        even = row_tiles + row_tiles % 2
        a, b = tl.swizzle2d(pid // (even + 1), pid % (even + 1), even // 2, even + 1, GROUP)
        unfolded = b > a
        return tl.where(unfolded, a, even - 1 - a), tl.where(unfolded, b - 1, even - 1 - b)
    return tl.swizzle2d(pid // col_tiles, pid % col_tiles, row_tiles, col_tiles, GROUP)


@triton.jit
def domain_pair(tiles, row_tile, col_tile, domain_mask, K):
    """The domains of the two tiles, and whether they may hold negatives: not where both have one and the same sample alone."""
    row_info = tiles + row_tile * 4
    col_info = tiles + col_tile * 4
    a = tl.load(row_info)
    b = tl.load(col_info)
    lowest = tl.minimum(tl.load(row_info + 2), tl.load(col_info + 2))
    highest = tl.maximum(tl.load(row_info + 3), tl.load(col_info + 3))
    live = (a >= 0) & (b >= 0) & (lowest < highest)
    if domain_mask is not None:
        live = live & (tl.load(domain_mask + a * K + b, mask=live, other=0) != 0)
    return a, b, live


@triton.jit
def holds_only_negatives(tiles, row_tile, col_tile, BLOCK: tl.constexpr):
    """Both tiles are full and, since sample numbers ascend, no sample is in both."""
    row_info = tiles + row_tile * 4
    col_info = tiles + col_tile * 4
    full = (tl.load(row_info + 1) == BLOCK) & (tl.load(col_info + 1) == BLOCK)
    before = tl.load(row_info + 3) < tl.load(col_info + 2)
    after = tl.load(col_info + 3) < tl.load(row_info + 2)
    return full & (before | after)


@triton.jit
def negatives(row_ids, col_ids):
    """(rows, columns) mask of the pairs that are negatives, from sample numbers that are -1 in empty slots."""
    different = row_ids[:, None] != col_ids[None, :]
    return different & (row_ids >= 0)[:, None] & (col_ids >= 0)[None, :]


@triton.jit
def positives(row, row_ids, col, col_ids):
    """(rows, columns) mask of the pairs that are positives, from slots and their sample numbers."""
    filled = tl.where(row_ids >= 0, row_ids, -2)
    return (filled[:, None] == col_ids[None, :]) & (row[:, None] != col[None, :])


@triton.jit
def pivot_of(top):
    """A top that can be subtracted: 0 where there is nothing but -inf."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def add(top, total, tops, totals, axis: tl.constexpr):
    """(top, total) with the pairs (tops, totals) along an axis added."""
    joint = tl.maximum(top, tl.max(tops, axis))
    pivot = pivot_of(joint)
    more = tl.sum(totals * tl.exp2(tops - tl.expand_dims(pivot, axis)), axis)
    return joint, total * tl.exp2(top - pivot) + more


@triton.jit
def log1p_of_fraction(x):
    """log(1 + x) for x in [0, 1] to the last digits: x times a polynomial, fitted for the smallest relative error."""
    p = -0.0032440247 * x + 0.019851463
    p = p * x - 0.05695954
    p = p * x + 0.10603656
    p = p * x - 0.15305594
    p = p * x + 0.1967594
    p = p * x - 0.24954134
    p = p * x + 0.33329964
    p = p * x - 0.499999
    return (p * x + 1.0) * x


@triton.jit
def sigmoid(x):
    """σ(x ln 2), to the last digits in both tails."""
    return 1.0 / (1.0 + tl.exp2(-x))


@triton.jit
def dot_tile(
    x,
    y,
    i,
    j,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """(BLOCK, BLOCK) dot products of the rows of x from i on with those of y from j on, of D columns each.

    With DESCRIPTORS x and y are descriptors of blocks (BLOCK, BLOCK_D), which the copy engine of sm_90 and newer loads.
    """
    dots = tl.zeros((BLOCK, BLOCK), tl.float32)
    if DESCRIPTORS:
        for k in range(0, D, BLOCK_D):
            x_tile = x.load([i.to(tl.int32), k])
            y_tile = y.load([j.to(tl.int32), k])
            dots = tl.dot(x_tile, y_tile.T, dots, input_precision=PRECISION)
    else:
        row = tl.arange(0, BLOCK) * D
        k = tl.arange(0, BLOCK_D)
        x_tile = x + i * D + (row[:, None] + k[None, :])
        y_tile = y + j * D + (row[None, :] + k[:, None])
        for _ in range(0, D, BLOCK_D):
            dots = tl.dot(tl.load(x_tile), tl.load(y_tile), dots, input_precision=PRECISION)
            x_tile += BLOCK_D
            y_tile += BLOCK_D
    return dots


@triton.jit
def halves(tile):
    """Left and right columns of a tile: dealt with one after the other, they need fewer registers at a time."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def eighths(tile):
    left, right = halves(tile)
    a, b = halves(left)
    c, d = halves(right)
    a, b, c, d = halves(a), halves(b), halves(c), halves(d)
    return a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]


@triton.jit
def mirror(here, mirrored, stride, BLOCK: tl.constexpr):
    """Store the transpose of a tile that this program has stored: to turn it in registers takes a second set of them."""
    lane = tl.arange(0, BLOCK)
    tl.debug_barrier()
    for side in tl.static_range(4):
        column = (side * (BLOCK // 4) + tl.arange(0, BLOCK // 4))[:, None]
        turned = tl.load(here + (lane[None, :] * stride + column))
        tl.store(mirrored + (column * stride + lane[None, :]), turned)


@triton.jit(do_not_specialize=["first_row_tile", "first_col_tile", "row_tiles", "col_tiles", "K"])
def sum_pairs_kernel(
    parts,
    tiles,
    sums,
    first_row_tile,
    first_col_tile,
    row_tiles,
    col_tiles,
    K,
    DIAGONAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[a, b, 0 and 1] += parts[0 and 1, it, jt] over the it of domain a and jt of domain b; one program a pair a <= b.

    On the diagonal it <= jt.
    """
    a = tl.program_id(0) // K
    b = tl.program_id(0) % K
    if a <= b:
        first = tl.zeros((BLOCK,), tl.float64)
        second = tl.zeros((BLOCK,), tl.float64)
        total = row_tiles * col_tiles
        for start in range(0, total, BLOCK):
            part = start + tl.arange(0, BLOCK)
            there = part < total
            it = part // col_tiles
            jt = part % col_tiles
            row_domain = tl.load(tiles + (first_row_tile + it) * 4, mask=there, other=-1)
            col_domain = tl.load(tiles + (first_col_tile + jt) * 4, mask=there, other=-1)
            wanted = (row_domain == a) & (col_domain == b)
            if DIAGONAL:
                wanted = wanted & (it <= jt)
            first += tl.load(parts + part, mask=wanted, other=0.0).to(tl.float64)
            second += tl.load(parts + total + part, mask=wanted, other=0.0).to(tl.float64)
        at = sums + (a * K + b) * 2
        tl.store(at, tl.load(at) + tl.sum(first, 0))
        tl.store(at + 1, tl.load(at + 1) + tl.sum(second, 0))
