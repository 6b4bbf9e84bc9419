"""A whole transformer block in one parallel region, whose steps are phases that threads share.

For wide blocks, and few or long sequences, of which a thread cannot take whole ones as in
transformer_block.py, whose formulas, arguments and twins these are. Each step is cut as the op of
its own is, and has the same bits. What is gained: threads meet between phases, which takes less
than a microsecond, and not in Python, which takes fifty where kernels have emptied the caches.
"""

import numpy as np

from ._compile import kernel, prange
from ._phases import end_task, new_progress, next_task, wait_for_phase
from ._rows import row_tasks
from ._simd import flat, thread_count
from .activation import NO_ACTIVATION
from .attention import (
    attention_backward_pairs,
    attention_forward_pairs,
    attention_tasks,
    backward_room,
    forward_room,
    longest_sequence,
    query_key_value,
)
from .layernorm import (
    add_layernorm_sums,
    layernorm_backward_rows,
    layernorm_forward_rows,
    new_layernorm_sums,
)
from .matmul import (
    FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    matmul_tn_reference,
    product_grid,
    product_task,
    task_of_two,
)
from .pooling import add_rows, copy_rows
from .transformer_block import (
    transformer_block_backward_reference,
    transformer_block_forward_reference,
    transformer_block_weights_reference,
)

# The steps of forward, and then of backward, in their order.
NORM_FIRST, CHOOSE, PROJECT, ATTEND, PUT_OUT, NORM, EXPAND, CONTRACT, NORM_LAST = range(9)
FORWARD_PHASES = 9
(
    BACK_NORM_LAST, BACK_CONTRACT, BACK_EXPAND, BACK_NORM, BACK_PUT_OUT, BACK_ATTEND, BACK_PROJECT,
    BACK_CHOOSE, BACK_NORM_FIRST, BACK_STREAM,
) = range(10)  # fmt: skip
BACKWARD_PHASES = 10


def wide_block_forward_reference(
    x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon, activation,
    norm1_weight, norm1_bias, query_weight, query_bias, projection_weight, projection_bias,
    output_weight, output_bias, norm2_weight, norm2_bias, expand_weight, expand_bias,
    contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
    largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
):  # fmt: skip
    """Compute `wide_block_forward` in NumPy."""
    transformer_block_forward_reference(
        x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon, activation,
        norm1_weight, norm1_bias, query_weight, query_bias, projection_weight, projection_bias,
        output_weight, output_bias, norm2_weight, norm2_bias, expand_weight, expand_bias,
        contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected,
        attended, largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
    )  # fmt: skip


def wide_block_backward_reference(
    dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation, norm1_weight,
    query_weight, projection_weight, output_weight, norm2_weight, expand_weight, contract_weight,
    mean1, rstd1, q, projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
    dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, dnorm1_weight,
    dnorm1_bias, dnorm2_weight, dnorm2_bias, chosen, attention_in, inner, hidden, dquery_bias,
    dquery_weight, dprojection_bias, dprojection_weight, doutput_bias, doutput_weight,
    dexpand_bias, dexpand_weight, dcontract_bias, dcontract_weight,
):  # fmt: skip
    """Compute `wide_block_backward` in NumPy."""
    transformer_block_backward_reference(
        dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation,
        norm1_weight, query_weight, projection_weight, output_weight, norm2_weight, expand_weight,
        contract_weight, mean1, rstd1, q, projected, attended, largest, total, attention_out,
        mean2, rstd2, saved, out, dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected,
        dchosen, dx, dnorm1_weight, dnorm1_bias, dnorm2_weight, dnorm2_bias,
    )  # fmt: skip
    transformer_block_weights_reference(
        attention_in, dprojected, dprojection_bias, dprojection_weight, attended, dsum1,
        doutput_bias, doutput_weight, inner, dhidden, dexpand_bias, dexpand_weight, hidden,
        dout if pre_norm else dsum2, dcontract_bias, dcontract_weight, mean1[:0],
    )  # fmt: skip
    if rows.size:
        matmul_tn_reference(chosen, dq, dquery_bias, dquery_weight)


@kernel
def _product(task, threads, x, weight, bias, addend, activation, slope, y):
    """Return the number of tasks of a linear layer; compute one, unless it is -1."""
    grid = product_grid(FORWARD, x.shape[0], weight.shape, y.shape[0], y, threads)
    if task >= 0:
        product_task(
            task, grid[0], grid[1], FORWARD, x.shape[0], weight.shape, y.shape[0], flat(x),
            flat(weight), bias, flat(addend), activation, flat(slope), flat(y),
        )  # fmt: skip
    return grid[0] * grid[1]


@kernel
def _gradients(task, threads, x, weight, dy, dbias, addend, activation, saved, dx, dweight):
    """Return the number of tasks of a linear layer's gradients; compute one, unless it is -1."""
    N, M = x.shape[0], dy.shape[0]
    weight_grid = product_grid(WEIGHT_GRADIENT, N, weight.shape, M, dy, threads)
    input_grid = product_grid(INPUT_GRADIENT, N, weight.shape, M, dy, threads)
    if task >= 0:
        task_of_two(
            task, WEIGHT_GRADIENT, weight_grid, input_grid, N, weight.shape, M, flat(x),
            flat(weight), flat(dy), dbias, flat(addend), activation, flat(saved), flat(dx),
            flat(dweight),
        )  # fmt: skip
    return weight_grid[0] * weight_grid[1] + input_grid[0] * input_grid[1]


@kernel
def _norm(task, x, weight, bias, epsilon, out, mean, rstd):
    """Return the number of tasks of a layer norm; compute one, unless it is -1."""
    N, C = x.shape
    tasks = row_tasks(N, C)
    if task >= 0:
        first, last = N * task // tasks, N * (task + 1) // tasks
        layernorm_forward_rows(first, last, x, weight, bias, epsilon, out, mean, rstd)
    return tasks


@kernel
def _norm_gradient(task, dout, x, weight, mean, rstd, residual, dx, sums):
    """Return the number of tasks of a layer norm's gradient; compute one, unless it is -1."""
    N, C = x.shape
    tasks = row_tasks(N, C)
    if task >= 0:
        first, last = N * task // tasks, N * (task + 1) // tasks
        layernorm_backward_rows(first, last, dout, x, weight, mean, rstd, residual, dx, task, sums)
    return tasks


@kernel
def _is_small(
    x, query_offsets, longest, projection_weight, projected, expand_weight, hidden, largest
):
    """Tell whether the largest steps are one task each."""
    projection = product_grid(
        FORWARD, x.shape[0], projection_weight.shape, projected.shape[0], x, 2
    )
    expansion = product_grid(FORWARD, hidden.shape[0], expand_weight.shape, hidden.shape[0], x, 2)
    queries, heads = largest.shape
    pairs = (query_offsets.size - 1) * heads
    attention = attention_tasks(pairs, queries * x.shape[1], x.size, longest)
    return max(projection[0] * projection[1], expansion[0] * expansion[1], attention) == 1


@kernel(once=True, allocates=False)
def _forward_task(
    phase, task, threads, longest, x, rows, query_offsets, key_offsets, pre_norm, causal, scale,
    epsilon, activation, norm1_weight, norm1_bias, query_weight, query_bias, projection_weight,
    projection_bias, output_weight, output_bias, norm2_weight, norm2_bias, expand_weight,
    expand_bias, contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q,
    projected, attended, largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
    nothing, room,
):  # fmt: skip
    """Return the number of tasks of a phase of forward; do one of them, unless it is -1."""
    none = np.int64(NO_ACTIVATION)
    attention_in = normed1 if pre_norm else x
    if phase == NORM_FIRST:
        if not pre_norm:
            return 0
        return _norm(task, x, norm1_weight, norm1_bias, epsilon, normed1, mean1, rstd1)
    if phase == CHOOSE:
        if task >= 0:
            copy_rows(0, rows.size, x, rows, stream)
            copy_rows(0, rows.size, attention_in, rows, chosen)
        return min(1, rows.size)
    if phase == PROJECT:
        queries = 0
        if rows.size:
            queries = _product(
                -1, threads, chosen, query_weight, query_bias, nothing, none, nothing, q
            )
            if task < queries:
                _product(task, threads, chosen, query_weight, query_bias, nothing, none, nothing, q)
        return queries + _product(
            max(-1, task - queries), threads, attention_in, projection_weight, projection_bias,
            nothing, none, nothing, projected,
        )  # fmt: skip
    if phase == ATTEND:
        heads = largest.shape[1]
        pairs = (query_offsets.size - 1) * heads
        queries, keys, values = query_key_value(q, projected, x.shape[0])
        tasks = attention_tasks(pairs, queries.size, keys.size, longest)
        if task >= 0:
            attention_forward_pairs(
                pairs * task // tasks, pairs * (task + 1) // tasks, longest, queries, keys, values,
                query_offsets, key_offsets, query_offsets[:0], mean1[:0], causal, scale, attended,
                largest, total, room,
            )  # fmt: skip
        return tasks
    if phase == PUT_OUT:
        return _product(
            task, threads, attended, output_weight, output_bias, stream, none, nothing,
            attention_out,
        )  # fmt: skip
    if phase == NORM:
        if pre_norm:
            return _norm(
                task, attention_out, norm2_weight, norm2_bias, epsilon, normed2, mean2, rstd2
            )
        return _norm(task, attention_out, norm1_weight, norm1_bias, epsilon, normed1, mean1, rstd1)
    if phase == EXPAND:
        return _product(
            task, threads, normed2 if pre_norm else normed1, expand_weight, expand_bias, nothing,
            activation, slope, hidden,
        )  # fmt: skip
    if phase == CONTRACT:
        return _product(
            task, threads, hidden, contract_weight, contract_bias,
            attention_out if pre_norm else normed1, none, nothing, out,
        )  # fmt: skip
    if pre_norm:
        return 0
    return _norm(task, out, norm2_weight, norm2_bias, epsilon, normed2, mean2, rstd2)


@kernel(once=True, allocates=False)
def _forward_thread(
    thread, threads, progress, longest, x, rows, query_offsets, key_offsets, pre_norm, causal,
    scale, epsilon, activation, norm1_weight, norm1_bias, query_weight, query_bias,
    projection_weight, projection_bias, output_weight, output_bias, norm2_weight, norm2_bias,
    expand_weight, expand_bias, contract_weight, contract_bias, normed1, mean1, rstd1, stream,
    chosen, q, projected, attended, largest, total, attention_out, normed2, mean2, rstd2, slope,
    hidden, out, nothing, room,
):  # fmt: skip
    """Take tasks of all phases of forward, one phase after the other."""
    for phase in range(FORWARD_PHASES):
        task = np.int64(-1)
        while True:
            tasks = _forward_task(
                phase, task, threads, longest, x, rows, query_offsets, key_offsets, pre_norm,
                causal, scale, epsilon, activation, norm1_weight, norm1_bias, query_weight,
                query_bias, projection_weight, projection_bias, output_weight, output_bias,
                norm2_weight, norm2_bias, expand_weight, expand_bias, contract_weight,
                contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
                largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out, nothing,
                room,
            )  # fmt: skip
            if task >= 0:
                end_task(progress, phase, threads)
            task = next_task(progress, phase, tasks, thread, threads)
            if task < 0:
                break
        wait_for_phase(progress, phase, tasks, threads)


@kernel(parallel=True)
def wide_block_forward(
    x, rows, query_offsets, key_offsets, pre_norm, causal, scale, epsilon, activation,
    norm1_weight, norm1_bias, query_weight, query_bias, projection_weight, projection_bias,
    output_weight, output_bias, norm2_weight, norm2_bias, expand_weight, expand_bias,
    contract_weight, contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
    largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out,
):  # fmt: skip
    """Compute the block, or the rows that are read out of it.

    Arguments as of `transformer_block_forward`.
    Threads: as in the op of each step; bit-identical for any thread count.
    """
    threads = thread_count()
    longest = longest_sequence(key_offsets)
    nothing = x[:0]
    rooms = np.empty((threads, forward_room(attended, largest.shape[1], longest)), x.dtype)
    progress = new_progress(FORWARD_PHASES, threads)
    if _is_small(
        x, query_offsets, longest, projection_weight, projected, expand_weight, hidden, largest
    ):
        # No other thread is woken, which would take as long as the work.
        _forward_thread(
            np.int64(0), threads, progress, longest, x, rows, query_offsets, key_offsets, pre_norm,
            causal, scale, epsilon, activation, norm1_weight, norm1_bias, query_weight, query_bias,
            projection_weight, projection_bias, output_weight, output_bias, norm2_weight,
            norm2_bias, expand_weight, expand_bias, contract_weight, contract_bias, normed1, mean1,
            rstd1, stream, chosen, q, projected, attended, largest, total, attention_out, normed2,
            mean2, rstd2, slope, hidden, out, nothing, rooms[0],
        )  # fmt: skip
    else:
        for part in prange(threads):
            thread = np.int64(part)
            _forward_thread(
                thread, threads, progress, longest, x, rows, query_offsets, key_offsets, pre_norm,
                causal, scale, epsilon, activation, norm1_weight, norm1_bias, query_weight,
                query_bias, projection_weight, projection_bias, output_weight, output_bias,
                norm2_weight, norm2_bias, expand_weight, expand_bias, contract_weight,
                contract_bias, normed1, mean1, rstd1, stream, chosen, q, projected, attended,
                largest, total, attention_out, normed2, mean2, rstd2, slope, hidden, out, nothing,
                rooms[thread],
            )  # fmt: skip


@kernel(once=True, allocates=False)
def _backward_task(
    phase, task, threads, longest, dout, x, rows, query_offsets, key_offsets, pre_norm, causal,
    scale, activation, norm1_weight, query_weight, projection_weight, output_weight, norm2_weight,
    expand_weight, contract_weight, mean1, rstd1, q, projected, attended, largest, total,
    attention_out, mean2, rstd2, saved, out, dsum2, dhidden, dinner, dsum1, dattended, dq,
    dprojected, dchosen, dx, chosen, attention_in, inner, hidden, dquery_bias, dquery_weight,
    dprojection_bias, dprojection_weight, doutput_bias, doutput_weight, dexpand_bias,
    dexpand_weight, dcontract_bias, dcontract_weight, sums1, sums2, nothing, room,
):  # fmt: skip
    """Return the number of tasks of a phase of backward; do one of them, unless it is -1."""
    none = np.int64(NO_ACTIVATION)
    if phase == BACK_NORM_LAST:
        if pre_norm:
            return 0
        return _norm_gradient(task, dout, out, norm2_weight, mean2, rstd2, nothing, dsum2, sums2)
    if phase == BACK_CONTRACT:
        return _gradients(
            task, threads, hidden, contract_weight, dout if pre_norm else dsum2, dcontract_bias,
            nothing, activation, saved, dhidden, dcontract_weight,
        )  # fmt: skip
    if phase == BACK_EXPAND:
        return _gradients(
            task, threads, inner, expand_weight, dhidden, dexpand_bias,
            nothing if pre_norm else dsum2, none, nothing, dinner, dexpand_weight,
        )  # fmt: skip
    if phase == BACK_NORM:
        if pre_norm:
            return _norm_gradient(
                task, dinner, attention_out, norm2_weight, mean2, rstd2, dout, dsum1, sums2
            )
        return _norm_gradient(
            task, dinner, attention_out, norm1_weight, mean1, rstd1, nothing, dsum1, sums1
        )
    if phase == BACK_PUT_OUT:
        return _gradients(
            task, threads, attended, output_weight, dsum1, doutput_bias, nothing, none, nothing,
            dattended, doutput_weight,
        )  # fmt: skip
    if phase == BACK_ATTEND:
        pairs = (query_offsets.size - 1) * largest.shape[1]
        queries, keys, values = query_key_value(q, projected, x.shape[0])
        dqueries, dkeys, dvalues = query_key_value(dq, dprojected, x.shape[0])
        tasks = attention_tasks(pairs, queries.size, keys.size, longest)
        if task >= 0:
            attention_backward_pairs(
                pairs * task // tasks, pairs * (task + 1) // tasks, longest, dattended, queries,
                keys, values, attended, largest, total, query_offsets, key_offsets,
                query_offsets[:0], mean1[:0], causal, scale, dqueries, dkeys, dvalues, room,
            )  # fmt: skip
        return tasks
    if phase == BACK_PROJECT:
        queries = 0
        if rows.size:
            residual = nothing if pre_norm else dsum1
            queries = _gradients(
                -1, threads, chosen, query_weight, dq, dquery_bias, residual, none, nothing,
                dchosen, dquery_weight,
            )  # fmt: skip
            if task < queries:
                _gradients(
                    task, threads, chosen, query_weight, dq, dquery_bias, residual, none, nothing,
                    dchosen, dquery_weight,
                )  # fmt: skip
        return queries + _gradients(
            max(-1, task - queries), threads, attention_in, projection_weight, dprojected,
            dprojection_bias, nothing if rows.size or pre_norm else dsum1, none, nothing, dx,
            dprojection_weight,
        )  # fmt: skip
    if phase == BACK_CHOOSE:
        if task >= 0:
            add_rows(0, rows.size, dchosen, rows, dx)
        return min(1, rows.size)
    if not pre_norm:
        return 0
    if phase == BACK_NORM_FIRST:
        residual = nothing if rows.size else dsum1
        return _norm_gradient(task, dx, x, norm1_weight, mean1, rstd1, residual, dx, sums1)
    if task >= 0:
        add_rows(0, rows.size, dsum1, rows, dx)
    return min(1, rows.size)


@kernel(once=True, allocates=False)
def _backward_thread(
    thread, threads, progress, longest, dout, x, rows, query_offsets, key_offsets, pre_norm,
    causal, scale, activation, norm1_weight, query_weight, projection_weight, output_weight,
    norm2_weight, expand_weight, contract_weight, mean1, rstd1, q, projected, attended, largest,
    total, attention_out, mean2, rstd2, saved, out, dsum2, dhidden, dinner, dsum1, dattended, dq,
    dprojected, dchosen, dx, chosen, attention_in, inner, hidden, dquery_bias, dquery_weight,
    dprojection_bias, dprojection_weight, doutput_bias, doutput_weight, dexpand_bias,
    dexpand_weight, dcontract_bias, dcontract_weight, sums1, sums2, nothing, room,
):  # fmt: skip
    """Take tasks of all phases of backward, one phase after the other."""
    for phase in range(BACKWARD_PHASES):
        task = np.int64(-1)
        while True:
            tasks = _backward_task(
                phase, task, threads, longest, dout, x, rows, query_offsets, key_offsets, pre_norm,
                causal, scale, activation, norm1_weight, query_weight, projection_weight,
                output_weight, norm2_weight, expand_weight, contract_weight, mean1, rstd1, q,
                projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
                dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, chosen,
                attention_in, inner, hidden, dquery_bias, dquery_weight, dprojection_bias,
                dprojection_weight, doutput_bias, doutput_weight, dexpand_bias, dexpand_weight,
                dcontract_bias, dcontract_weight, sums1, sums2, nothing, room,
            )  # fmt: skip
            if task >= 0:
                end_task(progress, phase, threads)
            task = next_task(progress, phase, tasks, thread, threads)
            if task < 0:
                break
        wait_for_phase(progress, phase, tasks, threads)


@kernel(parallel=True)
def wide_block_backward(
    dout, x, rows, query_offsets, key_offsets, pre_norm, causal, scale, activation, norm1_weight,
    query_weight, projection_weight, output_weight, norm2_weight, expand_weight, contract_weight,
    mean1, rstd1, q, projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
    dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, dnorm1_weight,
    dnorm1_bias, dnorm2_weight, dnorm2_bias, chosen, attention_in, inner, hidden, dquery_bias,
    dquery_weight, dprojection_bias, dprojection_weight, doutput_bias, doutput_weight,
    dexpand_bias, dexpand_weight, dcontract_bias, dcontract_weight,
):  # fmt: skip
    """Differentiate the block by x and by all of its parameters.

    Args:
        dout to dnorm2_bias: as of `transformer_block_backward`.
        chosen: as of `transformer_block_forward`.    attention_in, inner, hidden, and what is named
            after gradients of weights and biases: as of `transformer_block_weights`.
        dquery_bias, dquery_weight: (C,) or (0,), and (1, C, C), accumulated; with rows alone.
    Threads: as in the op of each step; bit-identical for any thread count.
    """
    threads = thread_count()
    longest = longest_sequence(key_offsets)
    nothing = x[:0]
    M, C = attention_out.shape
    sums1 = new_layernorm_sums(row_tasks(mean1.size, C), x)
    sums2 = new_layernorm_sums(row_tasks(M, C), x)
    rooms = np.empty((threads, backward_room(attended, largest.shape[1], longest)), x.dtype)
    progress = new_progress(BACKWARD_PHASES, threads)
    if _is_small(
        x, query_offsets, longest, projection_weight, dprojected, expand_weight, dhidden, largest
    ):
        # No other thread is woken, which would take as long as the work.
        _backward_thread(
            np.int64(0), threads, progress, longest, dout, x, rows, query_offsets, key_offsets,
            pre_norm, causal, scale, activation, norm1_weight, query_weight, projection_weight,
            output_weight, norm2_weight, expand_weight, contract_weight, mean1, rstd1, q,
            projected, attended, largest, total, attention_out, mean2, rstd2, saved, out, dsum2,
            dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, chosen, attention_in,
            inner, hidden, dquery_bias, dquery_weight, dprojection_bias, dprojection_weight,
            doutput_bias, doutput_weight, dexpand_bias, dexpand_weight, dcontract_bias,
            dcontract_weight, sums1, sums2, nothing, rooms[0],
        )  # fmt: skip
    else:
        for part in prange(threads):
            thread = np.int64(part)
            _backward_thread(
                thread, threads, progress, longest, dout, x, rows, query_offsets, key_offsets,
                pre_norm, causal, scale, activation, norm1_weight, query_weight, projection_weight,
                output_weight, norm2_weight, expand_weight, contract_weight, mean1, rstd1, q,
                projected, attended, largest, total, attention_out, mean2, rstd2, saved, out,
                dsum2, dhidden, dinner, dsum1, dattended, dq, dprojected, dchosen, dx, chosen,
                attention_in, inner, hidden, dquery_bias, dquery_weight, dprojection_bias,
                dprojection_weight, doutput_bias, doutput_weight, dexpand_bias, dexpand_weight,
                dcontract_bias, dcontract_weight, sums1, sums2, nothing, rooms[thread],
            )  # fmt: skip
    add_layernorm_sums(sums1, dnorm1_weight, dnorm1_bias)
    add_layernorm_sums(sums2, dnorm2_weight, dnorm2_bias)
