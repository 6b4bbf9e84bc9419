"""The kernels that are compiled ahead are those that training calls, with the types it calls."""

import io
import subprocess
import sys

import numpy as np
import pytest

import fastformer as ff
from fastformer import warmup

IDS = [[15, 17, 7, 19, 5, 19, 11, 18], [12, 17, 2, 19, 3, 19, 4, 18]]


def train_once(model, ids, targets):
    batch, loss_fn = ff.pack(ids), ff.CrossEntropyLoss()
    model.zero_grad()
    loss_fn.forward(model.forward(batch), targets)
    model.backward(loss_fn.backward())
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    ff.clip_gradients(model.parameters(), 1e9)
    ff.AdamW(model.parameters()).step()


@pytest.mark.parametrize("name", warmup.KERNELS)
def test_signature_is_what_training_calls(name):
    sizes = {"vocab_size": 20, "embed_dim": 8, "num_heads": 2, "ffn_dim": 8}
    # Few sequences are computed layer by layer, more of them a block at a time.
    for ids in (IDS, IDS * 2):
        train_once(ff.Transformer(ff.TransformerConfig(**sizes)), ids, np.arange(len(ids)))
        tokens = np.arange(8 * len(ids)) % 20
        train_once(ff.TransformerDecoder(ff.DecoderConfig(**sizes)), ids, tokens)
    float32 = [
        types
        for types in warmup.dispatcher(name).overloads
        if all(str(getattr(kind, "dtype", "")) != "float64" for kind in types)
    ]
    assert float32 == [warmup.signature(name)]


def test_another_precision_has_its_own_product_and_the_default_has_not():
    names, rounded = set(warmup.KERNELS), set(warmup.kernels_of("bfloat16", False))
    blocks = {name for name in names if name.startswith(("transformer_", "gradient.add_"))}
    assert rounded - names == {"matmul_bfloat16._product"}
    assert names - rounded == {"matmul._product", *blocks}
    model = ff.Transformer(
        ff.TransformerConfig(vocab_size=20, embed_dim=8, num_heads=2, ffn_dim=8),
        precision="bfloat16",
    )
    train_once(model, IDS, np.array([3, 4]))
    product = warmup.dispatcher("matmul_bfloat16._product")
    assert list(product.overloads) == [warmup.signature("matmul_bfloat16._product")]


def test_models_compile_what_they_train_with():
    """A classifier of the usual kind trains in one kernel, other models in several."""
    sizes = {"vocab_size": 20, "embed_dim": 8, "num_heads": 2, "ffn_dim": 8}
    models = {
        True: ff.Transformer(ff.TransformerConfig(**sizes)),
        False: ff.TransformerDecoder(ff.DecoderConfig(**sizes)),
    }
    for in_one, model in models.items():
        called = set()

        def watched(name, op, called=called):
            def call(*arguments):
                called.add(name)
                return op(*arguments)

            return call

        watching = {name: watched(name, op) for name, op in vars(model.ops).items() if callable(op)}
        with pytest.MonkeyPatch.context() as patch:
            for name, op in watching.items():
                patch.setattr(model.ops, name, op)
            targets = np.arange(4) if in_one else np.arange(32) % 20
            ff.train_step(
                model, ff.pack(IDS * 2), targets, ff.CrossEntropyLoss(), ff.Adam(model.parameters())
            )
        compiled = {name.partition(".")[2] for name in warmup.kernels_of("float32", in_one)}
        products = {"matmul", "matmul_nt", "matmul_tn", "matmul_backward"}
        assert called - products <= compiled
        assert ("transformer_gradients" in called) == in_one
        assert ("transformer_block_backward" in called) == (not in_one)


def test_a_default_run_compiles_and_loads_nothing_for_bfloat16():
    program = """
import numpy as np, fastformer as ff
model = ff.Transformer(ff.TransformerConfig(vocab_size=20, embed_dim=8, num_heads=2, ffn_dim=8))
model.forward(ff.pack([[1, 2, 3]]))
from fastformer.kernels import _bfloat16_tile, matmul_bfloat16
print(_bfloat16_tile.load_tiles.cache_info().currsize, len(matmul_bfloat16._product.overloads))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_process_answers_each_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("gradient.gradient_norm\npooling.gather_rows\n"))
    warmup.main()
    assert capsys.readouterr().out.split() == ["gradient.gradient_norm", "pooling.gather_rows"]


def test_what_another_process_compiled_is_loaded():
    name = "matmul_bfloat16._product"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "fastformer.warmup"], input=name, capture_output=True, text=True
        )
        assert done.stdout.split() == [name], done.stderr


@pytest.fixture
def cold(tmp_path, monkeypatch):
    markers = tmp_path / "compiled"
    monkeypatch.setattr(warmup, "_markers", lambda: markers)
    monkeypatch.setattr(warmup.threads, "available_threads", lambda: 2)
    monkeypatch.setattr(warmup, "KERNELS", {"gradient.gradient_norm": "r"})
    warmup.ensure_compiled.cache_clear()
    return markers / "gradient.gradient_norm"


def test_compiles_once_and_says_so(cold, capsys):
    warmup.ensure_compiled("float32", False)
    assert cold.exists()
    assert "compiled 1 kernels" in capsys.readouterr().err
    warmup.ensure_compiled.cache_clear()  # as in another process
    warmup.ensure_compiled("float32", False)
    assert capsys.readouterr().err == ""


def test_a_place_that_takes_no_marker_costs_the_next_start_its_time_only(cold, capsys):
    cold.parent.write_text("a file where the directory of markers should be")
    for _ in range(2):
        warmup.ensure_compiled.cache_clear()
        warmup.ensure_compiled("float32", False)
        assert "compiled 1 kernels" in capsys.readouterr().err


def test_a_process_that_dies_leaves_the_work_to_the_first_call(cold, monkeypatch):
    def broken(command, **options):
        return subprocess_popen([sys.executable, "-c", "raise SystemExit(1)"], **options)

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", broken)
    warmup.ensure_compiled("float32", False)
    assert not cold.exists()
