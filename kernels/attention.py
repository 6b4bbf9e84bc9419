"""Scaled dot-product attention over packed sequences, all heads, forward and backward.

    P = softmax(Q K^T * scale - slope * distance),   out = P V
    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * out)),   dQ = dS K * scale,   dK = dS^T Q * scale

A row of q, k, v holds the heads side by side. Sequence b's queries are the rows
query_offsets[b] to query_offsets[b + 1] of q, its keys and values those of key_offsets in k and v.
Where `causal`, the last query sees all keys, the one before it all but the last, and so on.
Where there are slopes, one for each head, scores fall with the distance of query and key, the
absolute difference of the query's position and the key's place among its sequence's keys.
No matrix of T x T is kept: scores are computed in blocks of BLOCK_KEYS keys and one or two
registers of queries, those that no query sees never; forward saves each row's largest score and
its sum of exponentials, and backward computes P again from them. (Not from the logarithm of the
sum: its rounding would be an error of all weights of the row.) A weight below 2^-64 of the largest,
2^-128 in float64, is 0: it counts for nothing, and products of such numbers may take a processor
hundreds of cycles.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; for the blocks and the form of dS:
Dao et al. 2022, arXiv:2205.14135, section 3; for slopes (ALiBi): Press et al. 2022,
arXiv:2108.12409, section 3.

It is one long file, for forward and backward share their steps and are read side by side.
"""

import math
from collections import namedtuple

import numpy as np

from ._blocks import (
    multiply_panels,
    multiply_rows,
    pack_panel_transposed,
    pack_panels,
    panel_width,
    whole_panels,
)
from ._compile import kernel, prange
from ._llvm import NARROW, WIDE
from ._rows import SUM_BLOCK
from ._simd import (
    drop_first,
    exp_or_zero,
    flat,
    fma,
    lanes,
    load,
    load_first,
    load_padded,
    max_lanes,
    maximum,
    splat,
    store,
    store_first,
    sum_lanes,
)
from ._tile import CHAIN_STEPS
from .op import op

# Scores are kept with a row for each key and a lane for each query, so that a softmax is a loop
# over rows without sums across lanes. A block of them stays in the first-level cache.
BLOCK_KEYS = 128
# Queries of a causal sequence that share their blocks, where one register has so many: the more,
# the more scores are computed that are hidden.
CAUSAL_QUERIES = 16
# Pairs of sequence and head are dealt out to tasks, which reuse their buffers. A task is worth its
# start from so many multiply-adds on.
MOST_TASKS = 64
TASK_SIZE = 1 << 15
KEY_COST = 16
# Sums over the columns of a head, and over keys, are made of sums of so many terms: the error of a
# chain grows with its length, and that of a score is one of its weight. A score's are those that
# tiles make by themselves in panels of one register.
SCORE_DEPTH = CHAIN_STEPS
KEY_DEPTH = 64
# In sequences up to this length, what is whole panels is multiplied where it lies, not packed.
UNPACKED_LENGTH = 256


def _sequence_heads(q, key_columns, query_offsets, key_starts, key_ends, num_heads):
    """Yield (rows of q, rows of k, columns of q, columns of k, head) for each sequence and head."""
    D = q.shape[1] // num_heads
    group = q.shape[1] // key_columns  # of heads that share keys and values
    for b in range(query_offsets.size - 1):
        queries = slice(query_offsets[b], query_offsets[b + 1])
        keys = slice(key_starts[b], key_ends[b])
        for head in range(num_heads):
            shared = head // group
            parts = slice(head * D, (head + 1) * D), slice(shared * D, (shared + 1) * D)
            yield queries, keys, *parts, head


def _scores(q, k, positions, slope, causal, scale):
    """Return scores, -inf where a query does not see a key, and what is left to multiply them by.

    Without a slope that is the scale: a difference of scores is rounded less than they are.
    """
    scores, left = q @ k.T, q.dtype.type(scale)
    if slope.size:
        distance = np.abs(positions[:, None] - np.arange(len(k)))
        scores, left = scores * left - slope * distance.astype(q.dtype), q.dtype.type(1)
    if causal:
        seen = np.tri(len(q), len(k), len(k) - len(q), dtype=bool)
        scores[~seen] = -np.inf
    return scores, left


def attention_forward_reference(
    q, k, v, query_offsets, key_offsets, positions, slopes, causal, scale, out, row_max, row_sum
):
    """Compute `attention_forward` in NumPy."""
    _attend_reference(
        q, k, v, query_offsets, key_offsets[:-1], key_offsets[1:], positions, slopes, causal, scale,
        out, row_max, row_sum,
    )  # fmt: skip


def _attend_reference(
    q, k, v, query_offsets, key_starts, key_ends, positions, slopes, causal, scale, out, row_max,
    row_sum,
):  # fmt: skip
    heads = row_max.shape[1]
    for rows, keys, part, shared, head in _sequence_heads(
        q, k.shape[1], query_offsets, key_starts, key_ends, heads
    ):
        bend = positions[rows], slopes[head : head + 1]
        scores, left = _scores(q[rows, part], k[keys, shared], *bend, causal, scale)
        row_max[rows, head] = scores.max(axis=1)
        weights = np.exp((scores - row_max[rows, head, None]) * left)
        row_sum[rows, head] = weights.sum(axis=1)
        out[rows, part] = weights @ v[keys, shared] / row_sum[rows, head, None]


def attention_backward_reference(
    dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes, causal,
    scale, dq, dk, dv,
):  # fmt: skip
    """Compute `attention_backward` in NumPy."""
    heads = row_max.shape[1]
    dk[...], dv[...] = 0, 0
    for rows, keys, part, shared, head in _sequence_heads(
        q, k.shape[1], query_offsets, key_offsets[:-1], key_offsets[1:], heads
    ):
        bend = positions[rows], slopes[head : head + 1]
        scores, left = _scores(q[rows, part], k[keys, shared], *bend, causal, scale)
        weights = np.exp((scores - row_max[rows, head, None]) * left) / row_sum[rows, head, None]
        delta = (dout[rows, part] * out[rows, part]).sum(axis=1, keepdims=True)
        dscores = weights * (dout[rows, part] @ v[keys, shared].T - delta) * q.dtype.type(scale)
        dq[rows, part] = dscores @ k[keys, shared]
        dk[keys, shared] += dscores.T @ q[rows, part]
        dv[keys, shared] += weights.T @ dout[rows, part]


def attention_weights_reference(
    q, k, query_offsets, key_offsets, positions, slopes, causal, scale, weights
):
    """Compute `attention_weights` in NumPy."""
    weights[...] = 0
    heads = weights.shape[1]
    sequence = -1
    for rows, keys, part, shared, head in _sequence_heads(
        q, k.shape[1], query_offsets, key_offsets[:-1], key_offsets[1:], heads
    ):
        sequence += head == 0
        bend = positions[rows], slopes[head : head + 1]
        scores, left = _scores(q[rows, part], k[keys, shared], *bend, causal, scale)
        found = np.exp((scores - scores.max(axis=1, keepdims=True)) * left)
        found /= found.sum(axis=1, keepdims=True)
        weights[sequence, head, : found.shape[0], : found.shape[1]] = found


# A head of the queries, that of the keys and values which it shares with others, and the columns of
# all keys' heads.
Head = namedtuple("Head", "query key columns")
# The queries of a sequence, and its keys: rows first to last, and first_key to last_key.
Span = namedtuple("Span", "first last first_key last_key")


@kernel
def _visible(i, last, T, causal):
    """Return how many of T keys query i sees, where `last` is the end of the queries."""
    return T - (last - 1 - i) if causal else T


@kernel(inline=True)
def _queries_at_once(causal, x):
    """Return how many queries share their blocks of scores: one or two registers."""
    return (NARROW if causal and WIDE * lanes(x) > CAUSAL_QUERIES else WIDE) * lanes(x)


@kernel
def _padded(count, x):
    """Return the room that `count` columns take when they are packed in panels."""
    width = WIDE * lanes(x)
    return (count + width - 1) // width * width


@kernel
def longest_sequence(offsets):
    """Return the length of the longest sequence."""
    longest = 0
    for b in range(offsets.size - 1):
        longest = max(longest, offsets[b + 1] - offsets[b])
    return longest


@kernel
def attention_tasks(pairs, queries, keys, longest):
    """Return the number of tasks for so many pairs, elements of queries, and of keys.

    Each key takes as long to pack and to go through as some products of it.
    """
    return max(1, min(pairs, MOST_TASKS, (queries * longest + keys * KEY_COST) // TASK_SIZE))


@kernel(inline=True)
def _scale_row(x, start, columns, factor):
    """Multiply a row by a factor."""
    for j in range(0, columns, lanes(x)):
        row = load_first(x, columns - j, start + j)
        store_first(x, columns - j, row * factor, start + j)


@kernel(inline=True)
def _score_depth(D, width, x):
    """Return over how many columns a tile sums, with the same bits in a panel of either width."""
    return D if width == NARROW * lanes(x) else SCORE_DEPTH


@kernel(inline=True)
def _block_scores(k, key, count, C, D, panel, width, out):
    """Write rows key to key + count of k times a packed panel of queries to out (count, width)."""
    depth = _score_depth(D, width, k)
    for d in range(0, D, depth):
        multiply_rows(
            0, count, width, min(depth, D - d), k, key + d, C, 1, panel, d * width, width, False,
            out, 0, d > 0, out, False, out, 0, width,
        )  # fmt: skip


@kernel(inline=True)
def _multiply_keys(
    rows, D, count, a, a_row_step, a_key_step, panels, place, column_step, row_step, key, adds, out,
    start, C,
):  # fmt: skip
    """Write to out, or add, rows of a (rows, count) times keys key to key + count of panels."""
    for first in range(0, count, KEY_DEPTH):
        multiply_panels(
            rows, 0, D, min(KEY_DEPTH, count - first), a, a_row_step, a_key_step, panels, place,
            column_step, row_step, key + first, adds or first > 0, out, start, C,
            first * a_key_step,
        )  # fmt: skip


@kernel
def _add_alibi_to_columns(
    scores, count, width, key, rows, i, positions, slopes, head, scale, places
):
    """Replace scores (count, width) by score * scale - slope * distance.

    Args:
        key: the first key's place.    rows: of them, the queries from i on; later lanes repeat
            the last.
        places: (width,), overwritten.
    """
    for r in range(width):
        places[r] = positions[i + min(r, rows - 1)]
    slope = slopes[head]
    for c in range(0, width, lanes(scores)):
        place = load(places, c)
        for j in range(count):
            away = place - (key + j)
            row = load(scores, j * width + c) * scale
            store(scores, fma(maximum(away, -away), -slope, row), j * width + c)


@kernel
def _add_alibi_to_row(scores, count, key, i, positions, slopes, head, scale, steps):
    """Do what `_add_alibi_to_columns` does for one query, whose scores are lanes: the same bits."""
    for lane in range(lanes(scores)):
        steps[lane] = lane
    slope, place = slopes[head], positions[i] - key
    for c in range(0, count, lanes(scores)):
        away = load(steps, 0) + (c - place)
        row = load_first(scores, count - c, c) * scale
        store_first(scores, count - c, fma(maximum(away, -away), -slope, row), c)


@kernel(part=True)
def _softmax_columns(scores, count, width, hidden, scale, goes_on, tile_max, tile_sum, factor):
    """Replace scores (count, width) by exp(scale * (score - m)).

    Args:
        hidden: key j is hidden from the first j - hidden + 1 queries.
        goes_on: whether there were earlier keys.
        tile_max, tile_sum: of each query so far, updated: m, and the sum of exponentials.
        factor: overwritten, where it goes on, by what sums over earlier keys are multiplied by.
    """
    for c in range(0, width, lanes(scores)):
        before = load(tile_max, c) if goes_on else splat(scores, -math.inf)
        m = before
        for j in range(count):
            row = load(scores, j * width + c)
            if j >= hidden:
                row = drop_first(row, j - hidden + 1 - c, -math.inf)
                store(scores, row, j * width + c)
            m = maximum(row, m)
        sums = splat(scores, 0.0)
        if goes_on:
            shrink = exp_or_zero((before - m) * scale)
            sums = load(tile_sum, c) * shrink
            store(factor, shrink, c)
        for start in range(0, count, SUM_BLOCK):
            part = splat(scores, 0.0)
            for j in range(start, min(count, start + SUM_BLOCK)):
                row = exp_or_zero((load(scores, j * width + c) - m) * scale)
                store(scores, row, j * width + c)
                part = part + row
            sums = sums + part
        store(tile_max, m, c)
        store(tile_sum, sums, c)


@kernel(part=True)
def _finish_queries(
    rows, width, head, tile_max, tile_sum, factor, out, start, C, D, row_max, row_sum, i
):
    """Divide the sums in out by the sums of exponentials, and save these."""
    for c in range(0, width, lanes(out)):
        store(factor, splat(out, 1.0) / load(tile_sum, c), c)
    for r in range(rows):
        _scale_row(out, start + r * C, D, factor[r])
        row_max[i + r, head], row_sum[i + r, head] = tile_max[r], tile_sum[r]


@kernel
def _row_scores(row, start, x, place, C, count, D, panel, out, out_start):
    """Write the products of one row with `count` rows of x, lanes being rows of x, to out."""
    for j in range(0, count, WIDE * lanes(x)):
        used = min(WIDE * lanes(x), count - j)
        width = panel_width(used, x)
        pack_panel_transposed(x, place + j * C, C, D, used, panel, 0)
        depth = _score_depth(D, width, x)
        for d in range(0, D, depth):
            multiply_rows(
                0, 1, used, min(depth, D - d), row, start + d, C, 1, panel, d * width, width, False,
                out, 0, d > 0, out, False, out, out_start + j, used,
            )  # fmt: skip


@kernel(part=True)
def _softmax_row(scores, count, scale, goes_on, tile_max, tile_sum, factor):
    """Do what `_softmax_columns` does for one query, whose scores are lanes: with the same bits."""
    before = load(tile_max, 0) if goes_on else splat(scores, -math.inf)
    m = splat(scores, -math.inf)
    for c in range(0, count, lanes(scores)):
        m = maximum(load_padded(scores, count - c, -math.inf, c), m)
    m = maximum(splat(scores, max_lanes(m)), before)
    for c in range(0, count, lanes(scores)):
        row = exp_or_zero((load_first(scores, count - c, c) - m) * scale)
        store_first(scores, count - c, row, c)
    sums = splat(scores, 0.0)
    if goes_on:
        shrink = exp_or_zero((before - m) * scale)
        sums = load(tile_sum, 0) * shrink
        store(factor, shrink, 0)
    for start in range(0, count, SUM_BLOCK):
        part = splat(scores, 0.0)
        for j in range(start, min(count, start + SUM_BLOCK)):
            part = part + splat(scores, scores[j])
        sums = sums + part
    store(tile_max, m, 0)
    store(tile_sum, sums, 0)


@kernel(part=True)
def _attention_forward_row(
    q, k, span, positions, slopes, head, scale, out, row_max, row_sum, panel,
    values, values_place, column_step, row_step, scores, tile_max, tile_sum, factor,
):  # fmt: skip
    """Attend from the one query of a sequence, which sees all keys, in one head."""
    C, i, T = q.size // row_max.shape[0], span.first, span.last_key - span.first_key
    D = C // row_max.shape[1]
    start, E = i * C + head.query * D, head.columns
    for key in range(0, T, BLOCK_KEYS):
        count, place = min(BLOCK_KEYS, T - key), (span.first_key + key) * E + head.key * D
        _row_scores(q, start, k, place, E, count, D, panel, scores, 0)
        left = scale
        if slopes.size > 0:
            _add_alibi_to_row(scores, count, key, i, positions, slopes, head.query, scale, factor)
            left = 1.0
        _softmax_row(scores, count, left, key > 0, tile_max, tile_sum, factor)
        if key > 0:
            _scale_row(out, start, D, factor[0])
        _multiply_keys(
            1, D, count, scores, 1, 1, values, values_place, column_step, row_step, key, key > 0,
            out, start, C,
        )  # fmt: skip
    _finish_queries(
        1, lanes(q), head.query, tile_max, tile_sum, factor, out, start, C, D, row_max, row_sum, i
    )


@kernel(part=True)
def _attention_forward_pair(
    q, k, v, span, positions, slopes, head, causal, scale, out, row_max, row_sum, scratch
):
    """Attend from the queries of one sequence in one head; q, k, v and out are flat."""
    C, most = q.size // row_max.shape[0], WIDE * lanes(q)
    D, T = C // row_max.shape[1], span.last_key - span.first_key
    block, columns = BLOCK_KEYS * most, most * D
    tile_max, tile_sum = scratch[:most], scratch[most : 2 * most]
    factor, scratch = scratch[2 * most : 3 * most], scratch[3 * most :]
    scores, scratch = scratch[:block], scratch[block:]
    queries, values = scratch[:columns], scratch[columns:]
    column, E = head.query * D, head.columns
    values_place, column_step, row_step, panels = span.first_key * E + head.key * D, 1, E, v
    if T > UNPACKED_LENGTH or not whole_panels(D, v):
        pack_panels(v, values_place, E, T, D, values)
        values_place, column_step, row_step, panels = 0, T, 0, values
    i, last = span.first, span.last
    if last - i == 1:
        _attention_forward_row(
            q, k, span, positions, slopes, head, scale, out, row_max, row_sum, queries, panels,
            values_place, column_step, row_step, scores, tile_max, tile_sum, factor,
        )  # fmt: skip
        return
    while i < last:
        rows = min(_queries_at_once(causal, q), last - i)
        width, start = panel_width(rows, q), i * C + column
        pack_panel_transposed(q, start, C, D, rows, queries, 0)
        for key in range(0, _visible(i + rows - 1, last, T, causal), BLOCK_KEYS):
            count = min(BLOCK_KEYS, _visible(i + rows - 1, last, T, causal) - key)
            place = (span.first_key + key) * E + head.key * D
            _block_scores(k, place, count, E, D, queries, width, scores)
            left = scale
            if slopes.size > 0:
                _add_alibi_to_columns(
                    scores, count, width, key, rows, i, positions, slopes, head.query, scale, factor
                )
                left = 1.0
            hidden = _visible(i, last, T, causal) - key if causal else count
            _softmax_columns(
                scores, count, width, hidden, left, key > 0, tile_max, tile_sum, factor
            )
            if key > 0:
                for r in range(rows):
                    _scale_row(out, start + r * C, D, factor[r])
            _multiply_keys(
                rows, D, count, scores, 1, width, panels, values_place, column_step, row_step, key,
                key > 0, out, start, C,
            )  # fmt: skip
        _finish_queries(
            rows,
            width,
            head.query,
            tile_max,
            tile_sum,
            factor,
            out,
            start,
            C,
            D,
            row_max,
            row_sum,
            i,
        )
        i += rows


@kernel
def forward_scratch(q, heads, longest):
    """Return how many elements `attention_forward_pairs` works in."""
    D, width = q.shape[1] // heads, WIDE * lanes(q)
    return (3 + BLOCK_KEYS + D) * width + longest * _padded(D, q)


@kernel(once=True, allocates=False)
def attention_forward_pairs(
    first_pair, last_pair, longest, q, k, v, query_offsets, key_starts, key_ends, positions, slopes,
    causal, scale, out, row_max, row_sum, scratch,
):  # fmt: skip
    """Attend in some pairs of sequence and head, in one thread; see `attention_forward`.

    Keys of sequence b are rows key_starts[b] to key_ends[b]. `scratch` has `forward_scratch`
    elements.
    """
    heads, group = row_max.shape[1], q.shape[1] // k.shape[1]
    flat_q, flat_k, flat_v = flat(q), flat(k), flat(v)
    flat_out = flat(out)
    for pair in range(first_pair, last_pair):
        b, head = pair // heads, pair % heads
        _attention_forward_pair(
            flat_q, flat_k, flat_v,
            Span(query_offsets[b], query_offsets[b + 1], key_starts[b], key_ends[b]), positions,
            slopes, Head(head, head // group, k.shape[1]), causal, scale, flat_out, row_max,
            row_sum, scratch,
        )  # fmt: skip


@kernel(parallel=True)
def attention_forward(
    q, k, v, query_offsets, key_offsets, positions, slopes, causal, scale, out, row_max, row_sum
):
    """Attend from every query, in every head.

    Args:
        q: (Nq, C) float32|float64, C-contiguous.    k, v: (Nk, E): of fewer heads where groups of
            C / E heads share them, as in Ainslie et al. 2023, arXiv:2305.13245.
        query_offsets, key_offsets: (B + 1,) int64, from 0 to Nq and to Nk, strictly rising.
        positions: (Nq,) int64, of each query in its sequence; (0,) where there are no slopes.
        slopes: (H,) of q's dtype, or (0,) for none.
        causal: bool; then no sequence has more queries than keys.    scale: 1 / sqrt(C / H).
        out: (Nq, C) overwritten.
        row_max, row_sum: (Nq, H) overwritten, for backward: the largest score, without slopes not
            multiplied by the scale, and the sum of the exponentials of how far all are above it.
    Threads: pairs of sequence and head; bit-identical for any thread count.
    """
    heads = row_max.shape[1]
    pairs = (query_offsets.size - 1) * heads
    longest = longest_sequence(key_offsets)
    tasks = attention_tasks(pairs, q.size, k.size, longest)
    for task in prange(tasks):
        attention_forward_pairs(
            pairs * task // tasks, pairs * (task + 1) // tasks, longest, q, k, v, query_offsets,
            key_offsets[:-1], key_offsets[1:], positions, slopes, causal, scale, out, row_max,
            row_sum, np.empty(forward_scratch(q, heads, longest), q.dtype),
        )  # fmt: skip


@kernel(part=True)
def _score_gradients(scores, dscores, count, width, hidden, left, scale, tile_max, inverse, delta):
    """Turn a block's scores into P, and its dO V^T into dS * scale; both (count, width).

    Args:
        hidden: key j is hidden from the first j - hidden + 1 queries.
        left: what scores are still to be multiplied by.
        tile_max, inverse, delta: (width,), of each query: its largest score, one over its sum of
            exponentials, and its sum of dO * out.
    """
    for c in range(0, width, lanes(scores)):
        m, part, shift = load(tile_max, c), load(inverse, c), load(delta, c)
        for j in range(count):
            weight = exp_or_zero((load(scores, j * width + c) - m) * left) * part
            if j >= hidden:
                weight = drop_first(weight, j - hidden + 1 - c, 0.0)
            gradient = weight * (load(dscores, j * width + c) - shift) * scale
            store(scores, weight, j * width + c)
            store(dscores, gradient, j * width + c)


@kernel(inline=True)
def _row_product(a, b, start, columns):
    """Return the sum of products of two rows that begin at the same place."""
    total = splat(a, 0.0)
    for j in range(0, columns, lanes(a)):
        total = fma(
            load_first(a, columns - j, start + j), load_first(b, columns - j, start + j), total
        )
    return sum_lanes(total)


@kernel(part=True)
def _query_sums(
    rows, width, dout, out, start, C, D, head, row_max, row_sum, i, tile_max, inverse, delta
):
    """Write each query's largest score, one over its sum of exponentials, its sum of dO * out."""
    for r in range(rows):
        delta[r] = _row_product(dout, out, start + r * C, D)
        tile_max[r], inverse[r] = row_max[i + r, head], row_sum[i + r, head]
    for r in range(rows, width):
        delta[r], tile_max[r], inverse[r] = delta[rows - 1], tile_max[rows - 1], inverse[rows - 1]
    for c in range(0, width, lanes(out)):
        store(inverse, splat(out, 1.0) / load(inverse, c), c)


@kernel(part=True)
def _attention_backward_row(
    dout, q, k, v, out, row_max, row_sum, span, positions, slopes, head, scale, dq, dk, dv, panel,
    scores, dscores,
):  # fmt: skip
    """Differentiate the one query of a sequence, which sees all keys, in one head."""
    C, i, T = q.size // row_max.shape[0], span.first, span.last_key - span.first_key
    D, size = C // row_max.shape[1], lanes(q)
    start, E = i * C + head.query * D, head.columns
    adds = head.query > head.key * (C // E)  # to what the first head of a group wrote
    delta = _row_product(dout, out, start, D)
    m, total = splat(q, row_max[i, head.query]), splat(q, row_sum[i, head.query])
    for key in range(0, T, BLOCK_KEYS):
        count, place = min(BLOCK_KEYS, T - key), (span.first_key + key) * E + head.key * D
        _row_scores(q, start, k, place, E, count, D, panel, scores, 0)
        left = scale
        if slopes.size > 0:
            _add_alibi_to_row(scores, count, key, i, positions, slopes, head.query, scale, dscores)
            left = 1.0
        _row_scores(dout, start, v, place, E, count, D, panel, dscores, 0)
        for c in range(0, count, size):
            weight = exp_or_zero((load_first(scores, count - c, c) - m) * left) / total
            gradient = weight * (load_first(dscores, count - c, c) - delta) * scale
            store_first(scores, count - c, weight, c)
            store_first(dscores, count - c, gradient, c)
        for d in range(0, D, size):
            query, dquery = load_first(q, D - d, start + d), load_first(dout, D - d, start + d)
            sums = splat(q, 0.0)
            for begin in range(0, count, SUM_BLOCK):
                part = splat(q, 0.0)
                for j in range(begin, min(count, begin + SUM_BLOCK)):
                    to = place + j * E + d
                    part = fma(load_first(k, D - d, to), dscores[j], part)
                    dkey, dvalue = query * dscores[j], dquery * scores[j]
                    if adds:
                        dkey = dkey + load_first(dk, D - d, to)
                        dvalue = dvalue + load_first(dv, D - d, to)
                    store_first(dk, D - d, dkey, to)
                    store_first(dv, D - d, dvalue, to)
                sums = sums + part
            if key > 0:
                sums = sums + load_first(dq, D - d, start + d)
            store_first(dq, D - d, sums, start + d)


@kernel(part=True)
def _attention_backward_pair(
    dout, q, k, v, out, row_max, row_sum, span, positions, slopes, head, causal, scale, dq, dk, dv,
    scratch,
):  # fmt: skip
    """Differentiate one sequence in one head; all matrices but row_* are flat."""
    C, most = q.size // row_max.shape[0], WIDE * lanes(q)
    D, T = C // row_max.shape[1], span.last_key - span.first_key
    block, columns, padded = BLOCK_KEYS * most, most * D, most * _padded(D, q)
    tile_max, inverse = scratch[:most], scratch[most : 2 * most]
    delta, scratch = scratch[2 * most : 3 * most], scratch[3 * most :]
    scores, dscores, scratch = scratch[:block], scratch[block : 2 * block], scratch[2 * block :]
    queries_transposed, scratch = scratch[:columns], scratch[columns:]
    douts_transposed, scratch = scratch[:columns], scratch[columns:]
    queries, douts, keys = scratch[:padded], scratch[padded : 2 * padded], scratch[2 * padded :]
    column, E = head.query * D, head.columns
    goes_on = head.query > head.key * (C // E)  # with what the first head of a group wrote
    i, last = span.first, span.last
    if last - i == 1:
        _attention_backward_row(
            dout, q, k, v, out, row_max, row_sum, span, positions, slopes, head, scale, dq, dk, dv,
            queries_transposed, scores, dscores,
        )  # fmt: skip
        return
    packs = T > UNPACKED_LENGTH or not whole_panels(D, k)
    keys_place, column_step, row_step, key_panels = span.first_key * E + head.key * D, 1, E, k
    query_row_step = C
    query_panels, dout_panels = q, dout
    if packs:
        pack_panels(k, keys_place, E, T, D, keys)
        keys_place, column_step, row_step, key_panels = 0, T, 0, keys
        query_row_step = 0
        query_panels, dout_panels = queries, douts
    # Keys before this one have a sum of gradients from earlier queries to go on with.
    begun = 0
    while i < last:
        rows = min(_queries_at_once(causal, q), last - i)
        width, start = panel_width(rows, q), i * C + column
        pack_panel_transposed(q, start, C, D, rows, queries_transposed, 0)
        pack_panel_transposed(dout, start, C, D, rows, douts_transposed, 0)
        query_place, query_step = start, 1
        if packs:
            query_place, query_step = 0, rows
            pack_panels(q, start, C, rows, D, queries)
            pack_panels(dout, start, C, rows, D, douts)
        _query_sums(
            rows, width, dout, out, start, C, D, head.query, row_max, row_sum, i, tile_max,
            inverse, delta,
        )  # fmt: skip
        end = _visible(i + rows - 1, last, T, causal)
        for key in range(0, end, BLOCK_KEYS):
            count, place = min(BLOCK_KEYS, end - key), (span.first_key + key) * E + head.key * D
            _block_scores(k, place, count, E, D, queries_transposed, width, scores)
            left = scale
            if slopes.size > 0:
                _add_alibi_to_columns(
                    scores,
                    count,
                    width,
                    key,
                    rows,
                    i,
                    positions,
                    slopes,
                    head.query,
                    scale,
                    dscores,
                )
                left = 1.0
            _block_scores(v, place, count, E, D, douts_transposed, width, dscores)
            hidden = _visible(i, last, T, causal) - key if causal else count
            _score_gradients(
                scores, dscores, count, width, hidden, left, scale, tile_max, inverse, delta
            )
            _multiply_keys(
                rows, D, count, dscores, 1, width, key_panels, keys_place, column_step, row_step,
                key, key > 0, dq, start, C,
            )  # fmt: skip
            old = min(max(begun - key, 0), count)
            for skip, size, adds in ((0, old, True), (old, count - old, False)):
                if size == 0:
                    continue
                row, to = skip * width, place + skip * E
                joins = adds or goes_on
                multiply_panels(
                    size, 0, D, rows, dscores, width, 1, query_panels, query_place, query_step,
                    query_row_step, 0, joins, dk, to, E, row,
                )  # fmt: skip
                multiply_panels(
                    size, 0, D, rows, scores, width, 1, dout_panels, query_place, query_step,
                    query_row_step, 0, joins, dv, to, E, row,
                )  # fmt: skip
        begun = end
        i += rows


@kernel
def backward_scratch(q, heads, longest):
    """Return how many elements `attention_backward_pairs` works in."""
    D, width = q.shape[1] // heads, WIDE * lanes(q)
    return (3 + 2 * BLOCK_KEYS + 2 * D) * width + (2 * width + longest) * _padded(D, q)


@kernel(once=True, allocates=False)
def attention_backward_pairs(
    first_pair, last_pair, longest, dout, q, k, v, out, row_max, row_sum, query_offsets,
    key_offsets, positions, slopes, causal, scale, dq, dk, dv, scratch,
):  # fmt: skip
    """Differentiate some pairs of sequence and keys' head, in one thread; see `attention_backward`.

    `scratch` is of `backward_scratch` elements.
    """
    heads, group = row_max.shape[1], q.shape[1] // k.shape[1]
    flat_dout, flat_out = flat(dout), flat(out)
    flat_q, flat_k, flat_v = flat(q), flat(k), flat(v)
    flat_dq, flat_dk, flat_dv = flat(dq), flat(dk), flat(dv)
    for pair in range(first_pair, last_pair):
        b, shared = pair // (heads // group), pair % (heads // group)
        for head in range(shared * group, (shared + 1) * group):
            _attention_backward_pair(
                flat_dout, flat_q, flat_k, flat_v, flat_out, row_max, row_sum,
                Span(query_offsets[b], query_offsets[b + 1], key_offsets[b], key_offsets[b + 1]),
                positions, slopes, Head(head, shared, k.shape[1]), causal, scale, flat_dq, flat_dk,
                flat_dv, scratch,
            )  # fmt: skip


@kernel(parallel=True)
def attention_backward(
    dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes, causal,
    scale, dq, dk, dv,
):  # fmt: skip
    """Differentiate `attention_forward`.

    Args:
        dout, q, out: (Nq, C) float32|float64, C-contiguous.    k, v: (Nk, E).
        row_max, row_sum: (Nq, H) from forward.
        query_offsets, key_offsets, positions, slopes, causal, scale: as there.
        dq: (Nq, C), dk, dv: (Nk, E), overwritten.
    Threads: pairs of sequence and keys' head, each with its own rows and columns of every output;
    bit-identical for any thread count.
    """
    heads = row_max.shape[1]
    pairs = (query_offsets.size - 1) * (heads // (q.shape[1] // k.shape[1]))
    longest = longest_sequence(key_offsets)
    tasks = attention_tasks(pairs, q.size, k.size, longest)
    for task in prange(tasks):
        attention_backward_pairs(
            pairs * task // tasks, pairs * (task + 1) // tasks, longest, dout, q, k, v, out,
            row_max, row_sum, query_offsets, key_offsets, positions, slopes, causal, scale, dq, dk,
            dv, np.empty(backward_scratch(q, heads, longest), q.dtype),
        )  # fmt: skip


@kernel
def _attention_weights_pair(
    q, k, first, last, first_key, last_key, positions, slopes, head, causal, scale, weights, b
):
    """Write the weights of one sequence in one head."""
    D = q.shape[1] // weights.shape[1]
    T, column = last_key - first_key, head * D
    back = column - head // (q.shape[1] // k.shape[1]) * D  # from columns of q to those of k
    left = 1.0 if slopes.size > 0 else scale
    for t in range(weights.shape[2]):
        i = first + t
        seen = _visible(i, last, T, causal) if i < last else 0
        largest, total = -math.inf, 0.0
        for j in range(seen):
            score = 0.0
            for d in range(column, column + D):
                score += q[i, d] * k[first_key + j, d - back]
            if slopes.size > 0:
                score = score * scale - slopes[head] * abs(positions[i] - j)
            weights[b, head, t, j] = score
            largest = max(largest, weights[b, head, t, j])
        # Not from what forward saved: huge scores that are rounded otherwise are far from these.
        for j in range(seen):
            weights[b, head, t, j] = math.exp((weights[b, head, t, j] - largest) * left)
            total += weights[b, head, t, j]
        for j in range(weights.shape[3]):
            weights[b, head, t, j] = weights[b, head, t, j] / total if j < seen else 0


@kernel(parallel=True)
def attention_weights(q, k, query_offsets, key_offsets, positions, slopes, causal, scale, weights):
    """Compute P again, for pictures.

    Args:
        q: (Nq, C) float32|float64, C-contiguous.    k: (Nk, E).
        query_offsets, key_offsets, positions, slopes, causal, scale: as in `attention_forward`.
        weights: (B, H, Tq, Tk) overwritten, with room for the longest sequence; 0 beyond the
            others and where a key is not seen.
    Threads: pairs of sequence and head; bit-identical for any thread count.
    """
    heads = weights.shape[1]
    for pair in prange((query_offsets.size - 1) * heads):
        b = pair // heads
        _attention_weights_pair(
            q, k, query_offsets[b], query_offsets[b + 1], key_offsets[b],
            key_offsets[b + 1], positions, slopes, pair % heads, causal, scale, weights, b,
        )  # fmt: skip


def _attention_reference(
    q, k, v, query_offsets, key_starts, key_ends, positions, slopes, longest, heads, causal, scale,
    out, row_max, row_sum,
):  # fmt: skip
    _attend_reference(
        q, k, v, query_offsets, key_starts, key_ends, positions, slopes, bool(causal), scale, out,
        row_max, row_sum,
    )  # fmt: skip


def _attention_gradient_reference(
    dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes, longest,
    heads, causal, scale, dq, dk, dv,
):  # fmt: skip
    attention_backward_reference(
        dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes,
        bool(causal), scale, dq, dk, dv,
    )  # fmt: skip


def _attention_tasks(
    threads, q, k, v, query_offsets, key_starts, key_ends, positions, slopes, longest, heads,
    causal, scale, out, row_max, row_sum, scratch,
):  # fmt: skip
    return attention_tasks((query_offsets.size - 1) * heads, q.size, k.size, longest)


def _attention_gradient_tasks(
    threads, dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes,
    longest, heads, causal, scale, dq, dk, dv, scratch,
):  # fmt: skip
    shared = heads // (q.shape[1] // k.shape[1])
    return attention_tasks((query_offsets.size - 1) * shared, q.size, k.size, longest)


def _forward_scratch_of(sizes, longest, lanes):
    D, width = sizes["C"] // sizes["H"], WIDE * lanes
    return (3 + BLOCK_KEYS + D) * width + longest * (-(-D // width) * width)


def _backward_scratch_of(sizes, longest, lanes):
    D, width = sizes["C"] // sizes["H"], WIDE * lanes
    padded = -(-D // width) * width
    return (3 + 2 * BLOCK_KEYS + 2 * D) * width + (2 * width + longest) * padded


@kernel
def _pairs_of(part, query_offsets, heads, q, k, longest):
    """Return the first and the last pair of sequence and head of a part."""
    if part.first >= 0:
        return part.first, part.last
    pairs = (query_offsets.size - 1) * heads
    tasks = attention_tasks(pairs, q.size, k.size, longest)
    return pairs * part.index // tasks, pairs * (part.index + 1) // tasks


@op(
    "q[Q,C] k[N,E] v[N,E] query_offsets:int[P] key_starts:int[B] key_ends:int[B] "
    "positions?:int[Q] slopes?[H] longest:int heads:int causal:int scale:float "
    "-> out[Q,C] row_max[Q,H] row_sum[Q,H] scratch:scratch",
    cut="sequences", times="H", tasks=_attention_tasks, twin=_attention_reference,
    scratch=_forward_scratch_of,
)  # fmt: skip
def attention(
    part, q, k, v, query_offsets, key_starts, key_ends, positions, slopes, longest, heads, causal,
    scale, out, row_max, row_sum, scratch,
):  # fmt: skip
    """Attend from every query, in every head, to rows key_starts to key_ends of each sequence.

    See `attention_forward`, where the keys of a sequence begin where those before end.
    """
    first, last = _pairs_of(part, query_offsets, heads, q, k, longest)
    attention_forward_pairs(
        first, last, longest, q, k, v, query_offsets, key_starts, key_ends, positions, slopes,
        causal != 0, scale, out, row_max, row_sum, scratch,
    )  # fmt: skip


@op(
    "dout[Q,C] q[Q,C] k[N,E] v[N,E] out[Q,C] row_max[Q,H] row_sum[Q,H] query_offsets:int[P] "
    "key_offsets:int[P] positions?:int[Q] slopes?[H] longest:int heads:int causal:int scale:float "
    "-> dq[Q,C] dk[N,E] dv[N,E] scratch:scratch",
    cut="sequences", times="H", tasks=_attention_gradient_tasks,
    twin=_attention_gradient_reference, scratch=_backward_scratch_of,
)  # fmt: skip
def attention_gradient(
    part, dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets, positions, slopes,
    longest, heads, causal, scale, dq, dk, dv, scratch,
):  # fmt: skip
    """Differentiate `attention` by queries, keys and values."""
    shared = heads // (q.shape[1] // k.shape[1])
    first, last = part.first // heads * shared, part.last // heads * shared
    if part.first < 0:
        first, last = _pairs_of(part, query_offsets, shared, q, k, longest)
    attention_backward_pairs(
        first, last, longest, dout, q, k, v, out, row_max, row_sum, query_offsets, key_offsets,
        positions, slopes, causal != 0, scale, dq, dk, dv, scratch,
    )  # fmt: skip
