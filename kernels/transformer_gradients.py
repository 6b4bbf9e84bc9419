"""A small classifier's loss and all its gradients, in one parallel region.

    x = table[tokens] + position_table[positions],   x = block(x) for each post-norm block
    logits = x[rows] W + bias,                       losses = cross_entropy(logits, targets)
    gradients += scale * d(sum of all losses) / d(parameters)

Each thread takes some sequences all the way, so that what a layer wrote is still in the thread's
own cache when backward reads it, and threads meet once and not at every layer. Each shard of the
sequences but the first has its own copy of all gradients, and they are added in order.
Every step is that of the op in a file of its own, where its formula and its source are.
"""

import inspect

import numpy as np

from ._compile import kernel, prange
from ._phases import end_task, new_progress, next_task, wait_for_phase
from ._rows import sum_in_float64
from ._simd import array_at, lanes, splat, store_first, thread_count
from .activation import NO_ACTIVATION, RELU, SLOPED
from .attention import longest_sequence
from .cross_entropy import (
    cross_entropy_backward_reference,
    cross_entropy_forward_reference,
    cross_entropy_gradient_rows,
    cross_entropy_rows,
)
from .embedding import embed_rows, embedding_backward_reference, embedding_forward_reference
from .gradient import add_copies, sum_tasks
from .layernorm import add_layernorm_sums
from .matmul import (
    FIRST_WEIGHT_GRADIENT,
    FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    matmul_nt_reference,
    matmul_reference,
    matmul_tn_reference,
    product_rows,
    weight_gradient_rows,
)
from .pooling import add_rows
from .transformer_block import (
    _first_sequence,
    backward_shards,
    first_sequence,
    forward_sequences,
    transformer_block_backward_reference,
    transformer_block_forward_reference,
)

# What a block has, by the names of the arguments of `transformer_block_forward` and its backward:
# first its parameters, then what lies in the room.
PARAMETERS = (
    "norm1_weight", "norm1_bias", "qkv_weight", "qkv_bias", "output_weight", "output_bias",
    "norm2_weight", "norm2_bias", "expand_weight", "expand_bias", "contract_weight",
    "contract_bias",
)  # fmt: skip
ROOMS = (
    "x", "normed2", "stream", "chosen", "q", "projected", "attended", "largest", "total",
    "attention_out", "normed1", "mean1", "rstd1", "mean2", "rstd2", "slope", "hidden", "out",
    "dout", "dsum2", "dhidden", "dinner", "dsum1", "dattended", "dq", "dprojected", "dchosen", "dx",
)  # fmt: skip
PER_BLOCK = len(PARAMETERS) + len(ROOMS)
(
    NORM1_WEIGHT, NORM1_BIAS, QKV_WEIGHT, QKV_BIAS, OUTPUT_WEIGHT, OUTPUT_BIAS, NORM2_WEIGHT,
    NORM2_BIAS, EXPAND_WEIGHT, EXPAND_BIAS, CONTRACT_WEIGHT, CONTRACT_BIAS,
    X, NORMED2, STREAM, CHOSEN, Q, PROJECTED, ATTENDED, LARGEST, TOTAL, ATTENTION_OUT, NORMED1,
    MEAN1, RSTD1, MEAN2, RSTD2, SLOPE, HIDDEN, OUT, DOUT, DSUM2, DHIDDEN, DINNER, DSUM1, DATTENDED,
    DQ, DPROJECTED, DCHOSEN, DX,
) = range(PER_BLOCK)  # fmt: skip
# What no block has; learned positions are at -1 where there are none.
EMBEDDING, POSITIONS, HEAD_WEIGHT, HEAD_BIAS, DLOGITS, LOSSES = range(6)


def room_places(
    blocks: int, tokens: int, sequences: int, C: int, H: int, F: int, V: int
) -> tuple[list[list[int]], list[int], int]:
    """Return where what `transformer_gradients` works in begins in the room, and the room's size.

    Returns:
        A list for each block of the places of `ROOMS`, those of DLOGITS and LOSSES, and the size.
    """
    end = 0

    def take(rows: int, columns: int) -> int:
        nonlocal end
        start = end
        end += -(-rows * columns // 16) * 16  # whole cache lines
        return start

    x, dx = take(tokens, C), take(tokens, C)
    dhidden, dprojected = take(tokens, F), take(3 * tokens, C)
    shared = {name: take(tokens, C) for name in ("dsum2", "dinner", "dsum1", "dattended")}
    places = []
    for block in range(blocks):
        ends = block == blocks - 1
        M = sequences if ends else tokens
        result = take(M, C)
        room = {"x": x, "normed2": result, "stream": x, "chosen": x, "q": 0, "dq": 0, "dchosen": 0}
        room |= {name: take(M, C) for name in ("attended", "attention_out", "normed1", "out")}
        room |= {name: take(M, F) for name in ("hidden", "slope")}
        room |= {name: take(M, H) for name in ("largest", "total")}
        room |= {name: take(M, 1) for name in ("mean1", "rstd1", "mean2", "rstd2")}
        room |= {"projected": take(3 * tokens, C), "dx": dx, "dout": dx}
        room |= {"dhidden": dhidden, "dprojected": dprojected, **shared}
        if ends:
            # Of a row for each sequence, and not where other shards have rows of earlier blocks.
            own = ("stream", "chosen", "q", "dq", "dchosen", "dout", *shared)
            room |= {name: take(M, C) for name in own} | {"dhidden": take(M, F)}
        places.append([room[name] for name in ROOMS])
        x = result
    return places, [take(sequences, V), take(3, sequences)], end


def _shard_arrays(p, N, M, t, asked, C, H, F, split, sloped, has_bias, values, gradients, room):
    """Return the arguments of a block's references for one shard, its gradients among them.

    Args:
        p: the block's places.    t, asked: the shard's rows: of N tokens, of M read out.
    """
    D, groups = C if has_bias else 0, 3 - split
    found = {}
    for own, d in ((values, ""), (gradients, "d")):
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                place = p[PARAMETERS.index(f"{name}_{part}")]
                found[f"{d}{name}_{part}"] = array_at(own, place, C)
        qkv, bias = array_at(own, p[QKV_WEIGHT], 3, C, C), array_at(own, p[QKV_BIAS], 3 * D)
        found |= {f"{d}query_weight": qkv[:split], f"{d}query_bias": bias[: split * D]}
        found |= {f"{d}projection_weight": qkv[split:], f"{d}projection_bias": bias[split * D :]}
        found[f"{d}output_weight"] = array_at(own, p[OUTPUT_WEIGHT], 1, C, C)
        found[f"{d}output_bias"] = array_at(own, p[OUTPUT_BIAS], D)
        found[f"{d}expand_weight"] = array_at(own, p[EXPAND_WEIGHT], 1, C, F)
        found[f"{d}expand_bias"] = array_at(own, p[EXPAND_BIAS], F)
        found[f"{d}contract_weight"] = array_at(own, p[CONTRACT_WEIGHT], 1, F, C)
        found[f"{d}contract_bias"] = array_at(own, p[CONTRACT_BIAS], C)
    for name, place in zip(ROOMS, p[len(PARAMETERS) :], strict=False):
        if name in ("x", "dx"):
            found[name] = array_at(room, place, N, C)[t]
        elif name in ("projected", "dprojected"):
            found[name] = array_at(room, place, groups, N, C)[:, t]
        elif name in ("q", "dq", "dchosen"):
            found[name] = array_at(room, place, split * M, C)[asked if split else slice(0)]
        elif name in ("mean1", "rstd1", "mean2", "rstd2"):
            found[name] = array_at(room, place, M)[asked]
        else:
            wide = {"largest": H, "total": H, "slope": F, "hidden": F, "dhidden": F}
            found[name] = array_at(room, place, M, wide.get(name, C))[asked]
    found["saved"] = found["slope" if sloped else "hidden"]
    if not sloped:
        found["slope"] = found["slope"][:0, :0]
    return found


def _call(reference, arrays):
    """Call a block's reference; what is stacked is, for a shard, some rows of each of the parts."""
    given = {name: arrays[name] for name in inspect.signature(reference).parameters}
    stacked = [name for name in ("projected", "dprojected") if name in given]
    for name in stacked:
        given[name] = given[name].reshape(-1, given[name].shape[2])
    reference(**given)
    for name in stacked:
        arrays[name][...] = given[name].reshape(arrays[name].shape)


def _block_gradients_reference(arrays, split):
    """Differentiate a block's shard by its input and its parameters."""
    _call(transformer_block_backward_reference, arrays)
    layers = [
        ("hidden", "dsum2", "contract"), ("normed1", "dhidden", "expand"),
        ("attended", "dsum1", "output"), ("x", "dprojected", "projection"),
    ]  # fmt: skip
    for x, dy, name in layers + [("chosen", "dq", "query")] * split:
        y = arrays[dy].reshape(-1, arrays[dy].shape[-1])
        matmul_tn_reference(arrays[x], y, arrays[f"d{name}_bias"], arrays[f"d{name}_weight"])


def transformer_gradients_reference(
    tokens, positions, offsets, rows, row_offsets, targets, H, F, attention_scale, epsilon,
    activation, has_bias, smoothing, scale, places, values, position_table, gradients, copies, room,
    logits,
):  # fmt: skip
    """Compute `transformer_gradients` in NumPy."""
    N, (B, V), (T, C) = tokens.size, logits.shape, position_table.shape
    blocks, shards = places.size // PER_BLOCK - 1, copies.shape[0] + 1
    p = places[blocks * PER_BLOCK :]
    losses = array_at(room, p[LOSSES], 3, B)
    sizes = C, H, F
    copies[...] = 0
    for shard, copy in enumerate((gradients, *copies)):
        begin, end = (_first_sequence(bound, shards, offsets) for bound in (shard, shard + 1))
        first, t, m = offsets[begin], slice(offsets[begin], offsets[end]), slice(begin, end)
        shared = {
            "key_offsets": offsets[begin : end + 1] - first, "pre_norm": False, "causal": False,
            "scale": attention_scale, "epsilon": epsilon, "activation": activation,
        }  # fmt: skip
        parts = []
        for block in range(blocks):
            ends = block == blocks - 1
            M, asked = (B, m) if ends else (N, t)
            arrays = shared | _shard_arrays(
                places[block * PER_BLOCK :][:PER_BLOCK], N, M, t, asked, *sizes, int(ends),
                activation in SLOPED, has_bias, values, copy, room,
            )  # fmt: skip
            arrays["rows"] = rows[m] - first if ends else rows[:0]
            arrays["query_offsets"] = (row_offsets if ends else offsets)[begin : end + 1]
            arrays["query_offsets"] = arrays["query_offsets"] - arrays["query_offsets"][0]
            parts.append(arrays)

        table = array_at(values, p[EMBEDDING], V, C)
        ids = tokens[t], positions[t]
        embedding_forward_reference(*ids, table, position_table, parts[0]["x"])
        for arrays in parts:
            _call(transformer_block_forward_reference, arrays)
        x, dx = parts[-1]["normed2"], parts[-1]["dout"]
        weight, bias = array_at(values, p[HEAD_WEIGHT], 1, C, V), array_at(values, p[HEAD_BIAS], V)
        nothing, dlogits = x[:0], array_at(room, p[DLOGITS], B, V)[m]
        matmul_reference(x, weight, bias, nothing, NO_ACTIVATION, nothing, logits[m])
        kept = losses[:, m]
        cross_entropy_forward_reference(logits[m], targets[m], smoothing, *kept)
        _, largest, total = kept
        cross_entropy_backward_reference(
            logits[m], targets[m], largest, total, smoothing, scale, dlogits
        )
        dweight, dbias = array_at(copy, p[HEAD_WEIGHT], 1, C, V), array_at(copy, p[HEAD_BIAS], V)
        matmul_tn_reference(x, dlogits, dbias, dweight)
        matmul_nt_reference(dlogits, weight, nothing, nothing, NO_ACTIVATION, dx)
        for block, arrays in reversed(list(enumerate(parts))):
            _block_gradients_reference(arrays, int(block == blocks - 1))
        dx = parts[0]["dx"]
        embedding_backward_reference(tokens[t], dx, array_at(copy, p[EMBEDDING], V, C))
        if p[POSITIONS] >= 0:
            embedding_backward_reference(positions[t], dx, array_at(copy, p[POSITIONS], T, C))
    for copy in copies:
        gradients += copy
    return float(losses[0].sum(dtype=np.float64))


@kernel
def _zero(x):
    """Set a flat array to 0."""
    for i in range(0, x.size, lanes(x)):
        store_first(x, x.size - i, splat(x, 0.0), i)


@kernel(once=True)
def _forward_block(
    begin, end, longest, offsets, query_offsets, rows, N, C, H, F, scale, epsilon, activation,
    has_bias, p, values, room,
):  # fmt: skip
    """Take sequences begin to end through a block, whose places are p."""
    M = query_offsets[query_offsets.size - 1]
    # With chosen rows, the query's projection is one of its own.
    split = 1 if rows.size else 0
    D = C if has_bias else 0
    slopes = 0 if activation == RELU else M
    no = bool(0)  # of the type of a variable: a literal's would have kernels compiled once more
    forward_sequences(
        begin, end, longest, array_at(room, p[X], N, C), rows, query_offsets, offsets, no, no,
        scale, epsilon, activation,
        array_at(values, p[NORM1_WEIGHT], C), array_at(values, p[NORM1_BIAS], C),
        array_at(values, p[QKV_WEIGHT], split, C, C), array_at(values, p[QKV_BIAS], split * D),
        array_at(values, p[QKV_WEIGHT] + split * C * C, 3 - split, C, C),
        array_at(values, p[QKV_BIAS] + split * D, (3 - split) * D),
        array_at(values, p[OUTPUT_WEIGHT], 1, C, C), array_at(values, p[OUTPUT_BIAS], D),
        array_at(values, p[NORM2_WEIGHT], C), array_at(values, p[NORM2_BIAS], C),
        array_at(values, p[EXPAND_WEIGHT], 1, C, F), array_at(values, p[EXPAND_BIAS], F),
        array_at(values, p[CONTRACT_WEIGHT], 1, F, C), array_at(values, p[CONTRACT_BIAS], C),
        array_at(room, p[NORMED1], M, C), array_at(room, p[MEAN1], M),
        array_at(room, p[RSTD1], M), array_at(room, p[STREAM], M, C),
        array_at(room, p[CHOSEN], M, C), array_at(room, p[Q], split * M, C),
        array_at(room, p[PROJECTED], (3 - split) * N, C), array_at(room, p[ATTENDED], M, C),
        array_at(room, p[LARGEST], M, H), array_at(room, p[TOTAL], M, H),
        array_at(room, p[ATTENTION_OUT], M, C), array_at(room, p[NORMED2], M, C),
        array_at(room, p[MEAN2], M), array_at(room, p[RSTD2], M),
        array_at(room, p[SLOPE], slopes, F),
        array_at(room, p[HIDDEN], M, F), array_at(room, p[OUT], M, C), array_at(room, 0, 0, 0),
    )  # fmt: skip


@kernel(once=True)
def _backward_block(
    shard, shards, form, longest, offsets, query_offsets, rows, N, C, H, F, scale, activation,
    has_bias, p, values, gradients, room,
):  # fmt: skip
    """Differentiate a block by its input and its parameters; write or add gradients of these."""
    M = query_offsets[query_offsets.size - 1]
    split = 1 if rows.size else 0
    D = C if has_bias else 0
    saved = p[HIDDEN] if activation == RELU else p[SLOPE]
    no, nothing = bool(0), array_at(room, 0, 0, 0)
    x, hidden = array_at(room, p[X], N, C), array_at(room, p[HIDDEN], M, F)
    attended = array_at(room, p[ATTENDED], M, C)
    dsum2, dsum1 = array_at(room, p[DSUM2], M, C), array_at(room, p[DSUM1], M, C)
    dhidden, dq = array_at(room, p[DHIDDEN], M, F), array_at(room, p[DQ], split * M, C)
    dprojected = array_at(room, p[DPROJECTED], (3 - split) * N, C)
    sums1 = np.zeros((1, 2, C), values.dtype)
    sums2 = np.zeros((1, 2, C), values.dtype)
    backward_shards(
        shard, shard + 1, shards, longest, array_at(room, p[DOUT], M, C), x, rows, query_offsets,
        offsets, no, no, scale, activation, array_at(values, p[NORM1_WEIGHT], C),
        array_at(values, p[QKV_WEIGHT], split, C, C),
        array_at(values, p[QKV_WEIGHT] + split * C * C, 3 - split, C, C),
        array_at(values, p[OUTPUT_WEIGHT], 1, C, C), array_at(values, p[NORM2_WEIGHT], C),
        array_at(values, p[EXPAND_WEIGHT], 1, C, F), array_at(values, p[CONTRACT_WEIGHT], 1, F, C),
        array_at(room, p[MEAN1], M), array_at(room, p[RSTD1], M),
        array_at(room, p[Q], split * M, C), array_at(room, p[PROJECTED], (3 - split) * N, C),
        attended, array_at(room, p[LARGEST], M, H), array_at(room, p[TOTAL], M, H),
        array_at(room, p[ATTENTION_OUT], M, C), array_at(room, p[MEAN2], M),
        array_at(room, p[RSTD2], M),
        array_at(room, saved, M, F),
        array_at(room, p[OUT], M, C), dsum2, dhidden, array_at(room, p[DINNER], M, C), dsum1,
        array_at(room, p[DATTENDED], M, C), dq, dprojected,
        array_at(room, p[DCHOSEN], split * M, C), array_at(room, p[DX], N, C), sums1, sums2,
        nothing, values[:0],
    )  # fmt: skip
    dnorm1 = array_at(gradients, p[NORM1_WEIGHT], C), array_at(gradients, p[NORM1_BIAS], C)
    dnorm2 = array_at(gradients, p[NORM2_WEIGHT], C), array_at(gradients, p[NORM2_BIAS], C)
    dexpand, dcontract = (
        array_at(gradients, p[EXPAND_BIAS], F), array_at(gradients, p[CONTRACT_BIAS], C)
    )  # fmt: skip
    dqkv, doutput = array_at(gradients, p[QKV_BIAS], 3 * D), array_at(gradients, p[OUTPUT_BIAS], D)
    if form == FIRST_WEIGHT_GRADIENT:
        for vector in (*dnorm1, *dnorm2):
            _zero(vector)
    add_layernorm_sums(sums1, dnorm1[0], dnorm1[1])
    add_layernorm_sums(sums2, dnorm2[0], dnorm2[1])
    begin, end = first_sequence(shard, shards, offsets), first_sequence(shard + 1, shards, offsets)
    first, last = query_offsets[begin], query_offsets[end]
    weight_gradient_rows(
        form, first, last, hidden, dsum2, dcontract,
        array_at(gradients, p[CONTRACT_WEIGHT], 1, F, C),
    )  # fmt: skip
    weight_gradient_rows(
        form, first, last, array_at(room, p[NORMED1], M, C), dhidden, dexpand,
        array_at(gradients, p[EXPAND_WEIGHT], 1, C, F),
    )  # fmt: skip
    weight_gradient_rows(
        form, first, last, attended, dsum1, doutput, array_at(gradients, p[OUTPUT_WEIGHT], 1, C, C)
    )
    if split:
        chosen, dquery = (
            array_at(room, p[CHOSEN], M, C),
            array_at(gradients, p[QKV_WEIGHT], 1, C, C),
        )
        weight_gradient_rows(form, first, last, chosen, dq, dqkv[:D], dquery)
    weight_gradient_rows(
        form, offsets[begin], offsets[end], x, dprojected, dqkv[split * D :],
        array_at(gradients, p[QKV_WEIGHT] + split * C * C, 3 - split, C, C),
    )  # fmt: skip


@kernel(once=True)
def _read_out(
    begin, end, form, C, p, targets, smoothing, scale, x, dx, values, gradients, room, logits
):
    """Classify sequences begin to end; write their losses, and write or add their gradients."""
    B, V = logits.shape
    weight = array_at(values, p[HEAD_WEIGHT], 1, C, V)
    dbias = array_at(gradients, p[HEAD_BIAS], V)
    dlogits, nothing = array_at(room, p[DLOGITS], B, V), array_at(room, 0, 0, 0)
    losses = array_at(room, p[LOSSES], 3, B)
    product_rows(
        FORWARD, begin, end, x, weight, logits, array_at(values, p[HEAD_BIAS], V), nothing,
        NO_ACTIVATION, nothing, x,
    )  # fmt: skip
    cross_entropy_rows(begin, end, logits, targets, smoothing, losses[0], losses[1], losses[2])
    cross_entropy_gradient_rows(
        begin, end, logits, targets, losses[1], losses[2], smoothing, scale, dlogits
    )
    weight_gradient_rows(
        form, begin, end, x, dlogits, dbias, array_at(gradients, p[HEAD_WEIGHT], 1, C, V)
    )
    product_rows(
        INPUT_GRADIENT, begin, end, dx, weight, dlogits, dbias[:0], nothing, NO_ACTIVATION, nothing,
        dx,
    )  # fmt: skip


@kernel(once=True)
def _shard_gradients(
    shard, shards, form, tokens, positions, offsets, rows, row_offsets, targets, H, F,
    attention_scale, epsilon, activation, has_bias, smoothing, scale, places, values, gradients,
    position_table, room, logits,
):  # fmt: skip
    """Take a shard's sequences forward and back; write or add their gradients, as form says."""
    N, B, C, V = tokens.size, rows.size, position_table.shape[1], logits.shape[1]
    blocks = places.size // PER_BLOCK - 1
    begin, end = first_sequence(shard, shards, offsets), first_sequence(shard + 1, shards, offsets)
    first, last = offsets[begin], offsets[end]
    longest = longest_sequence(offsets)
    p = places[blocks * PER_BLOCK :]
    x = array_at(room, places[X], N, C)
    embed_rows(
        first, last, tokens, positions, array_at(values, p[EMBEDDING], V, C), position_table, x
    )
    for block in range(blocks):
        ends = block == blocks - 1
        query_offsets = row_offsets if ends else offsets
        _forward_block(
            begin, end, longest, offsets, query_offsets, rows[: B * ends], N, C, H, F,
            attention_scale, epsilon, activation, has_bias, places[block * PER_BLOCK :], values,
            room,
        )  # fmt: skip
    last_block = places[(blocks - 1) * PER_BLOCK :]
    result, dresult = (
        array_at(room, last_block[NORMED2], B, C),
        array_at(room, last_block[DOUT], B, C),
    )
    _read_out(
        begin, end, form, C, p, targets, smoothing, scale, result, dresult, values, gradients, room,
        logits,
    )  # fmt: skip
    for back in range(blocks):
        block, ends = blocks - 1 - back, back == 0
        query_offsets = row_offsets if ends else offsets
        _backward_block(
            shard, shards, form, longest, offsets, query_offsets, rows[: B * ends], N, C, H, F,
            attention_scale, activation, has_bias, places[block * PER_BLOCK :], values, gradients,
            room,
        )  # fmt: skip
    dx = array_at(room, places[DX], N, C)
    overwrites = form == FIRST_WEIGHT_GRADIENT
    if overwrites:
        _zero(array_at(gradients, p[EMBEDDING], V * C))
    add_rows(first, last, dx, tokens, array_at(gradients, p[EMBEDDING], V, C))
    if p[POSITIONS] >= 0:
        T = position_table.shape[0]
        if overwrites:
            _zero(array_at(gradients, p[POSITIONS], T * C))
        add_rows(first, last, dx, positions, array_at(gradients, p[POSITIONS], T, C))


@kernel(once=True)
def _gradients_thread(
    thread, threads, progress, tokens, positions, offsets, rows, row_offsets, targets, H, F,
    attention_scale, epsilon, activation, has_bias, smoothing, scale, places, values,
    position_table, gradients, copies, room, logits,
):  # fmt: skip
    """Take shards, and then parts of the sum of their gradients."""
    shards = copies.shape[0] + 1
    for phase, tasks in enumerate((shards, sum_tasks(copies))):
        task = next_task(progress, phase, tasks, thread, threads)
        while task >= 0:
            if phase == 1:
                add_copies(task, copies, gradients)
            else:
                form, own = np.int64(WEIGHT_GRADIENT), gradients
                if task > 0:
                    form, own = np.int64(FIRST_WEIGHT_GRADIENT), copies[task - 1]
                _shard_gradients(
                    task, shards, form, tokens, positions, offsets, rows, row_offsets, targets, H,
                    F, attention_scale, epsilon, activation, has_bias, smoothing, scale, places,
                    values, own, position_table, room, logits,
                )  # fmt: skip
            end_task(progress, phase, threads)
            task = next_task(progress, phase, tasks, thread, threads)
        wait_for_phase(progress, phase, tasks, threads)


@kernel(parallel=True)
def transformer_gradients(
    tokens, positions, offsets, rows, row_offsets, targets, H, F, attention_scale, epsilon,
    activation, has_bias, smoothing, scale, places, values, position_table, gradients, copies, room,
    logits,
):  # fmt: skip
    """Compute the gradients of `scale` times the sum of the losses; return that sum, in float64.

    L blocks of width C, with H heads and feed-forward width F, for B sequences of N tokens; of each
    sequence one row is classified, into V classes, as many as there are token ids.

    Args:
        tokens, positions: (N,) int64, below V, and below T.    offsets: (B + 1,) int64, 0 to N,
            strictly rising.    rows: (B,) int64, one of each sequence.
        row_offsets: (B + 1,) int64, 0 to B.    targets: (B,) int64, below V; ignored if negative.
        attention_scale: 1 / sqrt(C / H).    epsilon: of the norms.
        activation: RELU, GELU or MISH.    has_bias: whether the attention's layers have biases.
        smoothing, scale: as in `cross_entropy_backward`.
        places: int64, for each of L blocks PER_BLOCK places: where its PARAMETERS begin in values
            and in each of the copies, and its ROOMS in the room, those of `room_places`; then
            PER_BLOCK more, of which EMBEDDING to LOSSES are used.
        values: (P,) float32|float64, all parameters.    position_table: (T, C).
        gradients: (P,), accumulated.
        copies: (shards - 1, P), overwritten by the gradients of each shard of the sequences but
            the first; where no parameter is, they must be 0.    room: (size,), overwritten.
        logits: (B, V), overwritten.
    Threads: shards, one more than there are copies, and then chunks of a fixed size of the sum of
    their gradients; bit-identical for any thread count.
    """
    threads = min(copies.shape[0] + 1, thread_count())
    progress = new_progress(2, threads)
    for part in prange(threads):
        _gradients_thread(
            np.int64(part), threads, progress, tokens, positions, offsets, rows, row_offsets,
            targets, H, F, attention_scale, epsilon, activation, has_bias, smoothing, scale,
            places, values, position_table, gradients, copies, room, logits,
        )  # fmt: skip
    p = places[places.size - PER_BLOCK :]
    return sum_in_float64(array_at(room, p[LOSSES], rows.size))
