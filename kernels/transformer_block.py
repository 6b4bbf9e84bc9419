"""A whole transformer block in one parallel region: each thread takes some sequences through it.

The gradients of its weights are a second one, for they are sums over all sequences.

    post-norm: b = norm1(x + attention(x)),   out = norm2(b + feed_forward(b))
    pre-norm:  b = x + attention(norm1(x)),   out = b + feed_forward(norm2(b))
    attention(y) = softmax(Q K^T * scale) V W_o + bias,   Q, K, V = y W_q, y W_k, y W_v + biases
    feed_forward(y) = activation(y W_1 + bias) W_2 + bias

Every step is that of the op in a file of its own, and has the same bits. What is gained: what one
step wrote is still in the thread's cache when the next one reads it, and threads wait for each
other once and not eight times. For wide blocks, and few or long sequences, see wide_block.py.
Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745, for pre-norm.
"""

import numpy as np

from ._compile import kernel, prange
from ._phases import end_task, new_progress, next_task, wait_for_phase
from ._simd import array_at, flat, lanes, load_first, store_first, thread_count
from .activation import NO_ACTIVATION
from .attention import (
    _query_key_value,
    attention_backward_pairs,
    attention_backward_reference,
    attention_forward_pairs,
    attention_forward_reference,
    backward_room,
    forward_room,
    longest_sequence,
    query_key_value,
)
from .layernorm import (
    add_layernorm_sums,
    layernorm_backward_reference,
    layernorm_backward_rows,
    layernorm_forward_reference,
    layernorm_forward_rows,
    new_layernorm_sums,
)
from .matmul import (
    FIRST_WEIGHT_GRADIENT,
    FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    matmul_nt_reference,
    matmul_reference,
    matmul_tn_reference,
    product_grid,
    product_rows,
    weight_gradient_task,
)
from .pooling import add_rows, copy_rows, gather_rows_reference, scatter_rows_reference

# Tokens of a shard, about, and the most shards: what sums of the norms' gradients are made of. A
# thread takes all of its shards at once, for it packs all weights, which costs as much as 4 rows.
SHARD_TOKENS = 64
MOST_SHARDS = 64


def transformer_block_forward_reference(
    x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon, activation,
    norm1_weight, norm1_bias, query_weight, query_bias, projection_weight, projection_bias,
    output_weight, output_bias, norm2_weight, norm2_bias, expand_weight, expand_bias,
    contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
    largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
):  # fmt: skip
    """Compute `transformer_block_forward` in NumPy."""
    nothing = x[:0]
    norm1 = (norm1_weight, norm1_bias, epsilon, normed1, mean1, rstd1)
    norm2 = (norm2_weight, norm2_bias, epsilon, normed2, mean2, rstd2)
    attention_in = normed1 if pre_norm else x
    if pre_norm:
        layernorm_forward_reference(x, *norm1)
    if rows.size:
        gather_rows_reference(x, rows, stream)
        gather_rows_reference(attention_in, rows, chosen)
        matmul_reference(chosen, query_weight, query_bias, nothing, NO_ACTIVATION, nothing, q)
    matmul_reference(
        attention_in, projection_weight, projection_bias, nothing, NO_ACTIVATION, nothing, projected
    )
    q, k, v = _query_key_value(q, projected, x.shape[0])
    attention_forward_reference(
        q, k, v, query_offsets, key_offsets, query_offsets[:0], mean1[:0], causal, scale, attended,
        largest, total,
    )  # fmt: skip
    matmul_reference(
        attended, output_weight, output_bias, stream, NO_ACTIVATION, nothing, attention_out
    )
    layernorm_forward_reference(attention_out, *(norm2 if pre_norm else norm1))
    inner = normed2 if pre_norm else normed1
    residual = attention_out if pre_norm else normed1
    matmul_reference(inner, expand_weight, expand_bias, nothing, activation, slope, hidden)
    matmul_reference(hidden, contract_weight, contract_bias, residual, NO_ACTIVATION, nothing, out)
    if not pre_norm:
        layernorm_forward_reference(out, *norm2)


def transformer_block_backward_reference(
    dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation, norm1_weight,
    query_weight, projection_weight, output_weight, norm2_weight, expand_weight, contract_weight,
    mean1, rstd1, q, projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
    dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, dnorm1_weight,
    dnorm1_bias, dnorm2_weight, dnorm2_bias,
):  # fmt: skip
    """Compute `transformer_block_backward` in NumPy."""
    nothing = x[:0]
    norm1, norm2 = (norm1_weight, mean1, rstd1), (norm2_weight, mean2, rstd2)
    dnorm1, dnorm2 = (dnorm1_weight, dnorm1_bias), (dnorm2_weight, dnorm2_bias)
    if not pre_norm:
        layernorm_backward_reference(dout, out, *norm2, nothing, dsum2, *dnorm2)
    dfeed_forward, residual = (dout, nothing) if pre_norm else (dsum2, dsum2)
    matmul_nt_reference(dfeed_forward, contract_weight, saved, nothing, activation, dhidden)
    matmul_nt_reference(dhidden, expand_weight, nothing, residual, NO_ACTIVATION, dinner)
    if pre_norm:
        layernorm_backward_reference(dinner, attention_out, *norm2, dout, dsum1, *dnorm2)
    else:
        layernorm_backward_reference(dinner, attention_out, *norm1, nothing, dsum1, *dnorm1)
    matmul_nt_reference(dsum1, output_weight, nothing, nothing, NO_ACTIVATION, dattended)
    q, k, v = _query_key_value(q, projected, x.shape[0])
    dqueries, dk, dv = _query_key_value(dq, dprojected, x.shape[0])
    attention_backward_reference(
        dattended, q, k, v, attended, largest, total, query_offsets, key_offsets,
        query_offsets[:0], mean1[:0], causal, scale, dqueries, dk, dv,
    )  # fmt: skip
    residual = nothing if rows.size or pre_norm else dsum1
    matmul_nt_reference(dprojected, projection_weight, nothing, residual, NO_ACTIVATION, dx)
    if rows.size:
        residual = nothing if pre_norm else dsum1
        matmul_nt_reference(dq, query_weight, nothing, residual, NO_ACTIVATION, dchosen)
        scatter_rows_reference(dchosen, rows, dx)
    if pre_norm:
        residual = nothing if rows.size else dsum1
        layernorm_backward_reference(dx, x, *norm1, residual, dx, *dnorm1)
        if rows.size:
            scatter_rows_reference(dsum1, rows, dx)


def transformer_block_weights_reference(
    attention_in, dprojected, dprojection_bias, dprojection_weight, attended, dattention_out,
    doutput_bias, doutput_weight, inner, dhidden, dexpand_bias, dexpand_weight, hidden,
    dfeed_forward, dcontract_bias, dcontract_weight, second,
):  # fmt: skip
    """Compute `transformer_block_weights` in NumPy."""
    place = 0
    for x, dout, dbias, dweight in (
        (attention_in, dprojected, dprojection_bias, dprojection_weight),
        (attended, dattention_out, doutput_bias, doutput_weight),
        (inner, dhidden, dexpand_bias, dexpand_weight),
        (hidden, dfeed_forward, dcontract_bias, dcontract_weight),
    ):
        if not second.size:
            matmul_tn_reference(x, dout, dbias, dweight)
            continue
        groups, M = dweight.shape[0], x.shape[0]
        by_group = dout.reshape(groups, M, dout.shape[1])
        weight = second[place : place + dweight.size].reshape(dweight.shape)
        place += dweight.size
        bias = second[place : place + dbias.size]
        place += dbias.size
        weight[...], bias[...] = 0, 0
        for rows, *sums in ((slice(M // 2), dbias, dweight), (slice(M // 2, M), bias, weight)):
            matmul_tn_reference(x[rows], by_group[:, rows].reshape(-1, dout.shape[1]), *sums)
        dweight += weight
        dbias += bias


@kernel
def shard_count(tokens, sequences):
    """Return the number of shards of a batch: by its size, never by the number of threads."""
    shards = 1
    while 2 * shards <= min(MOST_SHARDS, sequences, tokens // SHARD_TOKENS):
        shards *= 2
    return shards


def _first_sequence(shard, shards, offsets):
    """Return the first sequence of a shard: shards have whole sequences and alike many tokens."""
    low, high = 0, offsets.size - 1
    before = offsets[high] * shard
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] * shards < before:
            low = middle + 1
        else:
            high = middle
    return low


first_sequence = kernel(_first_sequence)


@kernel
def _norm_gradient(
    first_shard, last_shard, shards, query_offsets, key_offsets, dout, x, weight, mean, rstd,
    residual, dx, sums,
):  # fmt: skip
    """Differentiate a norm of the rows that are read out of some shards, and add to sums of each.

    Args:
        sums: (last_shard - first_shard, 2, C).
    """
    first = query_offsets[first_sequence(first_shard, shards, key_offsets)]
    for shard in range(first_shard, last_shard):
        last = query_offsets[first_sequence(shard + 1, shards, key_offsets)]
        layernorm_backward_rows(
            first, last, dout, x, weight, mean, rstd, residual, dx, shard - first_shard, sums
        )
        first = last


@kernel(once=True)
def forward_sequences(
    begin, end, longest, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon,
    activation, norm1_weight, norm1_bias, query_weight, query_bias, projection_weight,
    projection_bias, output_weight, output_bias, norm2_weight, norm2_bias, expand_weight,
    expand_bias, contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q,
    projected, attended, largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
    nothing,
):  # fmt: skip
    """Take sequences begin to end through the block."""
    heads = largest.shape[1]
    first, last = key_offsets[begin], key_offsets[end]
    first_query, last_query = query_offsets[begin], query_offsets[end]
    if pre_norm:
        layernorm_forward_rows(
            first, last, x, norm1_weight, norm1_bias, epsilon, normed1, mean1, rstd1
        )
    attention_in = normed1 if pre_norm else x
    if rows.size:
        copy_rows(begin, end, x, rows, stream)
        copy_rows(begin, end, attention_in, rows, chosen)
        product_rows(
            FORWARD, begin, end, chosen, query_weight, q, query_bias, nothing, NO_ACTIVATION,
            nothing, chosen,
        )  # fmt: skip
    product_rows(
        FORWARD, first, last, attention_in, projection_weight, projected, projection_bias, nothing,
        NO_ACTIVATION, nothing, x,
    )  # fmt: skip
    queries, keys, values = query_key_value(q, projected, x.shape[0])
    attention_forward_pairs(
        begin * heads, end * heads, longest, queries, keys, values, query_offsets, key_offsets,
        query_offsets[:0], mean1[:0], causal, scale, attended, largest, total,
        np.empty(forward_room(queries, heads, longest), x.dtype),
    )  # fmt: skip
    product_rows(
        FORWARD, first_query, last_query, attended, output_weight, attention_out, output_bias,
        stream, NO_ACTIVATION, nothing, attended,
    )  # fmt: skip
    if pre_norm:
        layernorm_forward_rows(
            first_query, last_query, attention_out, norm2_weight, norm2_bias, epsilon, normed2,
            mean2, rstd2,
        )  # fmt: skip
    else:
        layernorm_forward_rows(
            first_query, last_query, attention_out, norm1_weight, norm1_bias, epsilon, normed1,
            mean1, rstd1,
        )  # fmt: skip
    product_rows(
        FORWARD, first_query, last_query, normed2 if pre_norm else normed1, expand_weight, hidden,
        expand_bias, nothing, activation, slope, stream,
    )  # fmt: skip
    product_rows(
        FORWARD, first_query, last_query, hidden, contract_weight, out, contract_bias,
        attention_out if pre_norm else normed1, NO_ACTIVATION, nothing, hidden,
    )  # fmt: skip
    if not pre_norm:
        layernorm_forward_rows(
            first_query, last_query, out, norm2_weight, norm2_bias, epsilon, normed2, mean2, rstd2
        )


@kernel(parallel=True)
def transformer_block_forward(
    x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon, activation,
    norm1_weight, norm1_bias, query_weight, query_bias, projection_weight, projection_bias,
    output_weight, output_bias, norm2_weight, norm2_bias, expand_weight, expand_bias,
    contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
    largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
):  # fmt: skip
    """Compute the block, or the rows that are read out of it.

    C, H and F are the widths of the block and of its feed-forward layer, and the number of heads.
    Where one row of each sequence is read out, M is B, and all but keys and values is computed for
    those rows alone; else M is N.

    Args:
        x: (N, C) float32|float64, C-contiguous, as all arrays.    rows: (B,) int64, the rows that
            are read out, one of each sequence, or (0,).
        query_offsets, key_offsets, causal, scale: as in `attention_forward`.
        pre_norm: which of the two forms.    epsilon: of the norms.    activation: RELU, GELU
            or MISH.
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: (C,).
        query_weight, query_bias: (1, C, C) and (C,), used with rows; (0, C, C) and (0,) without.
        projection_weight, projection_bias: those of query, key and value, (3, C, C) and (3 C,);
            with rows those of key and value.    Each bias may be (0,).
        output_weight: (1, C, C).    expand_weight: (1, C, F).    contract_weight: (1, F, C).
        normed1, mean1, rstd1, normed2, mean2, rstd2: of the norms, (., C) and (.,), overwritten.
        stream, chosen: (B, C), overwritten by the rows of x and of the attention's input; x and
            that input without rows.
        q: (B, C), the queries with rows, else (0, 0).    projected: (3 N, C), queries, keys and
            values stacked; with rows (2 N, C), keys and values.
        attended, attention_out: (M, C).    largest, total: (M, H).    hidden: (M, F).
        slope: (M, F), (0, 0) for ReLU.    out: (M, C), of the feed-forward layer and residual
            sum: the result for pre-norm, where it is normed2 for post-norm.
    Threads: sequences; bit-identical for any thread count.
    """
    shards = shard_count(x.shape[0], key_offsets.size - 1)
    parts = min(shards, thread_count())
    longest = longest_sequence(key_offsets)
    nothing = x[:0]
    for part in prange(parts):
        begin = first_sequence(part * shards // parts, shards, key_offsets)
        end = first_sequence((part + 1) * shards // parts, shards, key_offsets)
        forward_sequences(
            begin, end, longest, x, rows, query_offsets, key_offsets, pre_norm, causal, scale,
            epsilon, activation, norm1_weight, norm1_bias, query_weight, query_bias,
            projection_weight, projection_bias, output_weight, output_bias, norm2_weight,
            norm2_bias, expand_weight, expand_bias, contract_weight, contract_bias, normed1, mean1,
            rstd1, stream, chosen, q, projected, attended, largest, total, attention_out, normed2,
            mean2, rstd2, slope, hidden, out, nothing,
        )  # fmt: skip


@kernel(once=True)
def backward_shards(
    first_shard, last_shard, shards, longest, dout, x, rows, query_offsets, key_offsets, pre_norm,
    causal, scale, activation, norm1_weight, query_weight, projection_weight, output_weight,
    norm2_weight, expand_weight, contract_weight, mean1, rstd1, q, projected, attended, largest,
    total, attention_out, mean2, rstd2, saved, out, dsum2, dhidden, dinner, dsum1, dattended, dq,
    dprojected, dchosen, dx, sums1, sums2, nothing, no_bias,
):  # fmt: skip
    """Take the gradients of some shards' sequences back through the block, line by line.

    Args:
        sums1, sums2: (last_shard - first_shard, 2, C), each shard's of the norms' gradients.
    """
    begin = first_sequence(first_shard, shards, key_offsets)
    end = first_sequence(last_shard, shards, key_offsets)
    heads = largest.shape[1]
    first, last = key_offsets[begin], key_offsets[end]
    first_query, last_query = query_offsets[begin], query_offsets[end]
    if not pre_norm:
        _norm_gradient(
            first_shard, last_shard, shards, query_offsets, key_offsets, dout, out, norm2_weight,
            mean2, rstd2, nothing, dsum2, sums2,
        )  # fmt: skip
    product_rows(
        INPUT_GRADIENT, first_query, last_query, dhidden, contract_weight,
        dout if pre_norm else dsum2, no_bias, nothing, activation, saved, dhidden,
    )  # fmt: skip
    product_rows(
        INPUT_GRADIENT, first_query, last_query, dinner, expand_weight, dhidden, no_bias,
        nothing if pre_norm else dsum2, NO_ACTIVATION, nothing, dinner,
    )  # fmt: skip
    if pre_norm:
        _norm_gradient(
            first_shard, last_shard, shards, query_offsets, key_offsets, dinner, attention_out,
            norm2_weight, mean2, rstd2, dout, dsum1, sums2,
        )  # fmt: skip
    else:
        _norm_gradient(
            first_shard, last_shard, shards, query_offsets, key_offsets, dinner, attention_out,
            norm1_weight, mean1, rstd1, nothing, dsum1, sums1,
        )  # fmt: skip
    product_rows(
        INPUT_GRADIENT, first_query, last_query, dattended, output_weight, dsum1, no_bias, nothing,
        NO_ACTIVATION, nothing, dattended,
    )  # fmt: skip
    queries, keys, values = query_key_value(q, projected, x.shape[0])
    dqueries, dkeys, dvalues = query_key_value(dq, dprojected, x.shape[0])
    attention_backward_pairs(
        begin * heads, end * heads, longest, dattended, queries, keys, values, attended, largest,
        total, query_offsets, key_offsets, query_offsets[:0], mean1[:0], causal, scale, dqueries,
        dkeys, dvalues, np.empty(backward_room(queries, heads, longest), x.dtype),
    )  # fmt: skip
    straight = rows.size == 0 and not pre_norm
    product_rows(
        INPUT_GRADIENT, first, last, dx, projection_weight, dprojected, no_bias,
        dsum1 if straight else nothing, NO_ACTIVATION, nothing, dx,
    )  # fmt: skip
    if rows.size:
        product_rows(
            INPUT_GRADIENT, begin, end, dchosen, query_weight, dq, no_bias,
            nothing if pre_norm else dsum1, NO_ACTIVATION, nothing, dchosen,
        )  # fmt: skip
        add_rows(begin, end, dchosen, rows, dx)
    if pre_norm:
        _norm_gradient(
            first_shard, last_shard, shards, key_offsets, key_offsets, dx, x, norm1_weight, mean1,
            rstd1, nothing if rows.size else dsum1, dx, sums1,
        )  # fmt: skip
        add_rows(begin, end if rows.size else begin, dsum1, rows, dx)


@kernel(parallel=True)
def transformer_block_backward(
    dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation, norm1_weight,
    query_weight, projection_weight, output_weight, norm2_weight, expand_weight, contract_weight,
    mean1, rstd1, q, projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
    dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, dnorm1_weight,
    dnorm1_bias, dnorm2_weight, dnorm2_bias,
):  # fmt: skip
    """Differentiate the block by x, by what each linear layer gave, and by the norms' parameters.

    The gradients of the linear layers' weights are `matmul_tn` of these.

    Args:
        dout: (M, C), the gradient by the result.    saved: hidden for ReLU, else slope.
        x to contract_weight, mean1 to rstd2, out: as in `transformer_block_forward`.
        dsum2: (M, C), the gradient by out, overwritten, for post-norm; (0, 0) for pre-norm, where
            it is dout.    dhidden: (M, F), by hidden's sum before the activation, overwritten.
        dinner: (M, C), by the feed-forward layer's input without the residual sum's part where
            that is added later.    dsum1: (M, C), by attention_out.    dattended: (M, C).
        dq, dprojected: as q and projected.    dchosen: as chosen, or (0, 0).
        dx: (N, C), overwritten; not dout.
        dnorm1_weight, dnorm1_bias, dnorm2_weight, dnorm2_bias: (C,) accumulated.
    Threads: sequences; the norms' sums over shards whose number the batch's size fixes, added in
    order: bit-identical for any thread count.
    """
    shards = shard_count(x.shape[0], key_offsets.size - 1)
    parts = min(shards, thread_count())
    longest = longest_sequence(key_offsets)
    nothing, no_bias = x[:0], mean1[:0]
    sums1, sums2 = new_layernorm_sums(shards, x), new_layernorm_sums(shards, x)
    for part in prange(parts):
        first, last = np.int64(part * shards // parts), np.int64((part + 1) * shards // parts)
        backward_shards(
            first, last, shards, longest, dout, x, rows, query_offsets, key_offsets,
            pre_norm, causal, scale, activation, norm1_weight, query_weight, projection_weight,
            output_weight, norm2_weight, expand_weight, contract_weight, mean1, rstd1, q, projected,
            attended, largest, total, attention_out, mean2, rstd2, saved, out, dsum2, dhidden,
            dinner, dsum1, dattended, dq, dprojected, dchosen, dx, sums1[first:last],
            sums2[first:last], nothing, no_bias,
        )  # fmt: skip
    add_layernorm_sums(sums1, dnorm1_weight, dnorm1_bias)
    add_layernorm_sums(sums2, dnorm2_weight, dnorm2_bias)


@kernel
def _weight_part(half, first, last, parts, place, second, x, dout, dbias, dweight):
    """Compute parts first to last of the tasks of a weight's gradient, in one thread.

    Returns:
        The end of the weight's place in `second`.

    Args:
        half: 0 for the first half of the rows, or for all if `second` is (0,); 1 for the other,
            whose gradients go to `second`, from `place` on.
    """
    groups, K, N = dweight.shape
    M, size = dout.shape[0] // groups, dweight.size
    halves = 2 if second.size else 1
    row_tasks, column_tasks = product_grid(
        WEIGHT_GRADIENT, x.shape[0], dweight.shape, dout.shape[0], dout, max(1, parts // halves)
    )
    first_row, last_row = M * half // halves, M * (half + 1) // halves
    form, sums, weight = WEIGHT_GRADIENT, dbias, dweight
    if half == 1:
        form, weight = FIRST_WEIGHT_GRADIENT, array_at(second, place, groups, K, N)
        sums = array_at(second, place + size, dbias.size)
    tasks = row_tasks * column_tasks
    for task in range(tasks * first // parts, tasks * last // parts):
        weight_gradient_task(
            form, task, row_tasks, column_tasks, first_row, last_row, x, dout, sums, weight
        )
    return place + size + dbias.size


@kernel
def _thread_weights(
    thread, threads, attention_in, dprojected, dprojection_bias, dprojection_weight, attended,
    dattention_out, doutput_bias, doutput_weight, inner, dhidden, dexpand_bias, dexpand_weight,
    hidden, dfeed_forward, dcontract_bias, dcontract_weight, second,
):  # fmt: skip
    """Compute a thread's part of the gradients of all weights.

    Each half is cut into as many parts as there are threads, and each thread takes as many parts
    as there are halves. Where tasks cannot be cut into alike many parts, the odd ones of two
    weights are not the same threads'.
    """
    halves = 2 if second.size else 1
    for half in range(halves):
        first = max(0, halves * thread - half * threads)
        last = min(threads, halves * (thread + 1) - half * threads)
        if first >= last:
            continue
        place = _weight_part(
            half, first, last, threads, 0, second, attention_in, dprojected, dprojection_bias,
            dprojection_weight,
        )  # fmt: skip
        place = _weight_part(
            half, threads - last, threads - first, threads, place, second, attended,
            dattention_out, doutput_bias, doutput_weight,
        )  # fmt: skip
        place = _weight_part(
            half, first, last, threads, place, second, inner, dhidden, dexpand_bias,
            dexpand_weight,
        )  # fmt: skip
        _weight_part(
            half, threads - last, threads - first, threads, place, second, hidden,
            dfeed_forward, dcontract_bias, dcontract_weight,
        )  # fmt: skip


@kernel
def _add_part(part, parts, second, place, gradient):
    """Add a part of a gradient of the second half of the rows; return the end of its place."""
    size = lanes(gradient)
    registers = (gradient.size + size - 1) // size
    last = min(gradient.size, size * (registers * (part + 1) // parts))
    for i in range(size * (registers * part // parts), last, size):
        total = load_first(gradient, last - i, i) + load_first(second, last - i, place + i)
        store_first(gradient, last - i, total, i)
    return place + gradient.size


@kernel
def _add_second(
    part, parts, second, dprojection_bias, dprojection_weight, doutput_bias, doutput_weight,
    dexpand_bias, dexpand_weight, dcontract_bias, dcontract_weight,
):  # fmt: skip
    """Add a part of the gradients of the second half of the rows, which lie one after the other."""
    place = _add_part(part, parts, second, 0, flat(dprojection_weight))
    place = _add_part(part, parts, second, place, dprojection_bias)
    place = _add_part(part, parts, second, place, flat(doutput_weight))
    place = _add_part(part, parts, second, place, doutput_bias)
    place = _add_part(part, parts, second, place, flat(dexpand_weight))
    place = _add_part(part, parts, second, place, dexpand_bias)
    place = _add_part(part, parts, second, place, flat(dcontract_weight))
    _add_part(part, parts, second, place, dcontract_bias)


@kernel(parallel=True)
def transformer_block_weights(
    attention_in, dprojected, dprojection_bias, dprojection_weight, attended, dattention_out,
    doutput_bias, doutput_weight, inner, dhidden, dexpand_bias, dexpand_weight, hidden,
    dfeed_forward, dcontract_bias, dcontract_weight, second,
):  # fmt: skip
    """Add the gradients of the weights of a block's four linear layers, each as `matmul_tn` does.

    By halves of the rows, two threads read what they wrote in backward, and not each other's; but
    the second half's gradients are to be added afterwards.

    Args:
        attention_in: (N, C) float32|float64, what queries, keys and values are made of.
        dprojected: (3 N, C), or (2 N, C) of keys and values.    dprojection_weight: (3, C, C) or
            (2, C, C).    dprojection_bias: (3 C,), (2 C,) or (0,).
        attended, dattention_out: (M, C).    doutput_weight: (1, C, C).    doutput_bias: (C,), (0,).
        inner: (M, C), what the feed-forward layer is given.    dhidden: (M, F).
        dexpand_weight: (1, C, F).    dexpand_bias: (F,).
        hidden: (M, F).    dfeed_forward: (M, C).    dcontract_weight: (1, F, C).
        dcontract_bias: (C,).    All that begins with d and ends with weight or bias: accumulated.
        second: (P,), where P is the size of all of these, overwritten by the gradients of the
            second half of the rows; or (0,) for all rows at once.
    Threads: blocks of rows and columns of each weight, and then parts of the sum of the halves;
    bit-identical for any count.
    """
    threads = thread_count()
    phases = 2 if second.size else 1
    progress = new_progress(phases, threads)
    for part in prange(threads):
        thread = np.int64(part)
        for phase in range(phases):
            task = next_task(progress, phase, threads, thread, threads)
            while task >= 0:
                if phase == 0:
                    _thread_weights(
                        task, threads, attention_in, dprojected, dprojection_bias,
                        dprojection_weight, attended, dattention_out, doutput_bias, doutput_weight,
                        inner, dhidden, dexpand_bias, dexpand_weight, hidden, dfeed_forward,
                        dcontract_bias, dcontract_weight, second,
                    )  # fmt: skip
                else:
                    _add_second(
                        task, threads, second, dprojection_bias, dprojection_weight, doutput_bias,
                        doutput_weight, dexpand_bias, dexpand_weight, dcontract_bias,
                        dcontract_weight,
                    )  # fmt: skip
                end_task(progress, phase, threads)
                task = next_task(progress, phase, threads, thread, threads)
            wait_for_phase(progress, phase, threads, threads)
