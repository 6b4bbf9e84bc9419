"""A whole transformer block in one parallel region: each thread takes some sequences through it.

    post-norm: b = norm1(x + attention(x)),   out = norm2(b + feed_forward(b))
    pre-norm:  b = x + attention(norm1(x)),   out = b + feed_forward(norm2(b))
    attention(y) = softmax(Q K^T * scale) V W_o + bias,   Q, K, V = y W_q, y W_k, y W_v + biases
    feed_forward(y) = activation(y W_1 + bias) W_2 + bias

Every step is that of the op in a file of its own, and has the same bits. What is gained: what one
step wrote is still in the thread's cache when the next one reads it, and threads wait for each
other once and not eight times.
Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745, for pre-norm.
"""

import numpy as np

from ._compile import kernel, prange
from .activation import NO_ACTIVATION
from .attention import (
    attention_backward_pairs,
    attention_backward_reference,
    attention_forward_pairs,
    attention_forward_reference,
    longest_sequence,
)
from .layernorm import (
    add_layernorm_sums,
    layernorm_backward_reference,
    layernorm_backward_rows,
    layernorm_forward_reference,
    layernorm_forward_rows,
)
from .matmul import (
    FORWARD,
    INPUT_GRADIENT,
    matmul_nt_reference,
    matmul_reference,
    product_rows,
)
from .pooling import add_rows, copy_rows

# Tokens of a shard: each packs all weights for itself, which costs as much as 4 rows.
SHARD_TOKENS = 64
MOST_SHARDS = 64


@kernel
def shard_count(tokens, sequences):
    """Return the number of shards of a batch: by its size, never by the number of threads."""
    shards = 1
    while 2 * shards <= min(MOST_SHARDS, sequences, tokens // SHARD_TOKENS):
        shards *= 2
    return shards


@kernel
def _first_sequence(shard, shards, offsets):
    """Return the first sequence of a shard: shards have whole sequences and alike many tokens."""
    tokens, b = offsets[offsets.size - 1], 0
    while offsets[b] * shards < tokens * shard:
        b += 1
    return b


@kernel(once=True)
def _forward_shard(
    begin, end, longest, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon,
    activation, norm1_weight, norm1_bias, query_weight, query_bias, projection_weight,
    projection_bias, output_weight, output_bias, norm2_weight, norm2_bias, expand_weight,
    expand_bias, contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q,
    projected, k, v, attended, logsumexp, attention_out, normed2, mean2, rstd2, slope, hidden, out,
    nothing,
):  # fmt: skip
    """Take sequences begin to end through the block."""
    heads = logsumexp.shape[1]
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
    attention_forward_pairs(
        begin * heads, end * heads, longest, q, k, v, query_offsets, key_offsets, causal, scale,
        attended, logsumexp,
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
    contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, k, v,
    attended, logsumexp, attention_out, normed2, mean2, rstd2, slope, hidden, out,
):  # fmt: skip
    """Compute the block."""
    shards = shard_count(x.shape[0], key_offsets.size - 1)
    longest = longest_sequence(key_offsets)
    nothing = x[:0]
    for shard in prange(shards):
        begin = _first_sequence(shard, shards, key_offsets)
        end = _first_sequence(shard + 1, shards, key_offsets)
        _forward_shard(
            begin, end, longest, x, rows, query_offsets, key_offsets, pre_norm, causal, scale,
            epsilon, activation, norm1_weight, norm1_bias, query_weight, query_bias,
            projection_weight, projection_bias, output_weight, output_bias, norm2_weight,
            norm2_bias, expand_weight, expand_bias, contract_weight, contract_bias, normed1, mean1,
            rstd1, stream, chosen, q, projected, k, v, attended, logsumexp, attention_out, normed2,
            mean2, rstd2, slope, hidden, out, nothing,
        )  # fmt: skip


@kernel(once=True)
def _backward_shard(
    begin, end, longest, shard, dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale,
    activation, norm1_weight, query_weight, projection_weight, output_weight, norm2_weight,
    expand_weight, contract_weight, mean1, rstd1, q, k, v, attended, logsumexp, attention_out,
    mean2, rstd2, saved, out, dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dk, dv,
    dchosen, dx, sums1, sums2, nothing, no_bias,
):  # fmt: skip
    """Take the gradients of sequences begin to end back through the block, line by line."""
    heads = logsumexp.shape[1]
    first, last = key_offsets[begin], key_offsets[end]
    first_query, last_query = query_offsets[begin], query_offsets[end]
    if not pre_norm:
        layernorm_backward_rows(
            first_query, last_query, dout, out, norm2_weight, mean2, rstd2, nothing, dsum2, shard,
            sums2,
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
        layernorm_backward_rows(
            first_query, last_query, dinner, attention_out, norm2_weight, mean2, rstd2, dout,
            dsum1, shard, sums2,
        )  # fmt: skip
    else:
        layernorm_backward_rows(
            first_query, last_query, dinner, attention_out, norm1_weight, mean1, rstd1, nothing,
            dsum1, shard, sums1,
        )  # fmt: skip
    product_rows(
        INPUT_GRADIENT, first_query, last_query, dattended, output_weight, dsum1, no_bias, nothing,
        NO_ACTIVATION, nothing, dattended,
    )  # fmt: skip
    attention_backward_pairs(
        begin * heads, end * heads, longest, dattended, q, k, v, attended, logsumexp,
        query_offsets, key_offsets, causal, scale, dq, dk, dv,
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
        layernorm_backward_rows(
            first, last, dx, x, norm1_weight, mean1, rstd1, nothing if rows.size else dsum1, dx,
            shard, sums1,
        )  # fmt: skip
        add_rows(begin, end if rows.size else begin, dsum1, rows, dx)


@kernel(parallel=True)
def transformer_block_backward(
    dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation, norm1_weight,
    query_weight, projection_weight, output_weight, norm2_weight, expand_weight, contract_weight,
    mean1, rstd1, q, k, v, attended, logsumexp, attention_out, mean2, rstd2, saved, out, dsum2,
    dhidden, dinner, dsum1, dattended, dq, dprojected, dk, dv, dchosen, dx, dnorm1_weight,
    dnorm1_bias, dnorm2_weight, dnorm2_bias,
):  # fmt: skip
    """Compute the gradients by all that linear layers gave, by the norms' parameters, and by x."""
    shards = shard_count(x.shape[0], key_offsets.size - 1)
    longest = longest_sequence(key_offsets)
    nothing, no_bias = x[:0], mean1[:0]
    sums1 = np.zeros((shards, 2, x.shape[1]), x.dtype)
    sums2 = np.zeros((shards, 2, x.shape[1]), x.dtype)
    for shard in prange(shards):
        begin = _first_sequence(shard, shards, key_offsets)
        end = _first_sequence(shard + 1, shards, key_offsets)
        _backward_shard(
            begin, end, longest, shard, dout, x, rows, query_offsets, key_offsets, pre_norm,
            causal, scale, activation, norm1_weight, query_weight, projection_weight,
            output_weight, norm2_weight, expand_weight, contract_weight, mean1, rstd1, q, k, v,
            attended, logsumexp, attention_out, mean2, rstd2, saved, out, dsum2, dhidden, dinner,
            dsum1, dattended, dq, dprojected, dk, dv, dchosen, dx, sums1, sums2, nothing, no_bias,
        )  # fmt: skip
    add_layernorm_sums(sums1, dnorm1_weight, dnorm1_bias)
    add_layernorm_sums(sums2, dnorm2_weight, dnorm2_bias)


def transformer_block_forward_reference(*a): raise NotImplementedError
def transformer_block_backward_reference(*a): raise NotImplementedError
