"""The kernels that are compiled ahead are those that training calls, with the types it calls."""

import gc
import io
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from numba import types

import fastformer as ff
from fastformer import backend, schedule, warmup
from fastformer.generation import generate
from fastformer.kernels import _cache, _compile
from fastformer.training.steps import step_gradients, training_kernels
from fastformer.workspace import Workspace

IDS = [[15, 17, 7, 19, 5, 19, 11, 18], [12, 17, 2, 19, 3, 19, 4, 18]]


def train_once(model, ids, targets):
    batch, loss_fn = ff.pack(ids), ff.CrossEntropyLoss()
    model.zero_grad()
    loss_fn.forward(model.forward(batch), targets)
    model.backward(loss_fn.backward())
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    ff.clip_gradients(model.parameters(), 1e9)
    ff.AdamW(model.parameters()).step()


SIZES = {"vocab_size": 20, "embed_dim": 8, "num_heads": 2, "ffn_dim": 8}


PARTS = {part for parts in warmup.PARTS.values() for part in parts}


def overloads(name):
    """Return the types that a kernel is compiled for in this process, but for those of float64."""
    found = list(warmup.dispatcher(name).overloads)
    if name in PARTS:  # which come from the disk with those that call them
        callees = [callee.compiled for callee in _cache._CALLEES.values()]
        stem, _, function = name.partition(".")
        found = [
            tuple(compiled.signature.args)
            for compiled in callees
            if compiled.fndesc.qualname == function and compiled.fndesc.modname.endswith(stem)
        ]
    return [
        types
        for types in found
        if all(str(getattr(kind, "dtype", "")) != "float64" for kind in types)
    ]


@pytest.mark.parametrize("name", warmup.KERNELS)
def test_signature_is_what_is_called(name):
    """By training, evaluation and generation, in each precision and each way to share a batch."""
    for precision in ("float32", "bfloat16") if "bfloat16" in name else ("float32",):
        for ids in (IDS, IDS * 32):
            model = ff.Transformer(ff.TransformerConfig(**SIZES), precision=precision).train()
            train_once(model, ids, np.arange(len(ids)) % 20)
            model = ff.TransformerDecoder(ff.DecoderConfig(**SIZES), precision=precision).train()
            train_once(model, ids, np.arange(8 * len(ids)) % 20)
        generate(model, [[1, 2]], max_new_tokens=2)
        step_gradients(
            model, ff.pack(IDS), np.ones(8 * len(IDS), int), ff.CrossEntropyLoss(), shards=2
        )
    # Those of other tests, that are given what is optional, are none of these.
    wanted = warmup.signature(name)
    left_out = [place for place, kind in enumerate(wanted) if isinstance(kind, types.Omitted)]
    found = {kinds for kinds in overloads(name) if all(kinds[p] == wanted[p] for p in left_out)}
    assert found == {wanted}


def test_another_precision_has_its_own_products_and_the_default_has_not():
    model = ff.Transformer(ff.TransformerConfig(**SIZES), precision="bfloat16")
    rounded = {name for name in training_kernels(model, ff.pack(IDS)) if name.startswith("matmul")}
    assert {name.partition(".")[0] for name in rounded} == {"matmul_bfloat16"}


def called_by(model, work):
    """Return the names of the kernels and ops that a model's programs, the loss and a step call."""
    called = set()

    def watched(table, name, op):
        def call(*arguments):
            called.add(warmup.DRIVER if name == "run_program" else f"{modules[name]}.{name}")
            return op(*arguments)

        return call

    def run(space, *arguments, **options):
        called.update(step.op.path for step in space.steps_of(options.get("stages")))
        return runs(space, *arguments, **options)

    modules = {op: module for module, ops in backend.OPS.items() for op in ops}
    runs = Workspace.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "run", run)
        for table in {id(ops): ops for ops in (model.ops, backend.get_backend("numba"))}.values():
            for name, op in list(vars(table).items()):
                if callable(op):
                    patch.setattr(table, name, watched(table, name, op))
        work()
    return called


def classifier(**options):
    return ff.Transformer(ff.TransformerConfig(**SIZES), **options)


def decoder(**options):
    return ff.TransformerDecoder(ff.DecoderConfig(**SIZES), **options)


MODELS = {
    "classifier": classifier,
    "classifier in bfloat16": lambda: classifier(precision="bfloat16"),
    "decoder": decoder,
    "decoder in bfloat16": lambda: decoder(precision="bfloat16"),
    "decoder of large blocks": decoder,
}


@pytest.mark.parametrize("few", [False, True], ids=["usual batch", "few sequences"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_compile_what_they_call_and_nothing_else(kind, few, monkeypatch):
    if kind == "decoder of large blocks":
        monkeypatch.setattr(schedule, "MOST_OF_A_BLOCK", 0)
    model, batch, loss_fn = MODELS[kind](), ff.pack(IDS if few else IDS * 32), ff.CrossEntropyLoss()
    targets = np.arange(batch.num_sequences if "classifier" in kind else batch.num_tokens) % 20

    def forward():
        loss_fn.forward(model.forward(batch), targets)

    def step():
        ff.train_step(model, batch, targets, loss_fn, ff.Adam(model.parameters()))
        ff.clip_gradients(model.parameters(), 1e9)

    names = {*model.forward_workspace(batch).kernels((0, 1)), *warmup.EVALUATION_KERNELS}
    assert called_by(model, forward) == names
    assert called_by(model, step) == set(training_kernels(model, batch))


def test_what_is_not_compiled_ahead():
    batch = ff.pack(IDS)
    for options in ({"backend": "reference"}, {"dtype": "float64"}):
        assert classifier(**options).forward_workspace(batch).kernels() == ()
        assert training_kernels(classifier(**options), batch) == ()


def test_a_first_step_compiles_nothing_by_itself(tmp_path, monkeypatch):
    """What is compiled ahead is all that it needs: nothing else is on disk, and it is found."""
    monkeypatch.setattr(warmup.threads, "available_threads", lambda: 2)
    warmup.ensure_compiled.cache_clear()
    names = training_kernels(classifier(), ff.pack([[3, 4, 5]] * 4))
    warmup.ensure_compiled(names)
    root = _compile.CACHE_DIRECTORY
    kept = [path for name in warmup._with_parts(names) for path in root.glob(f"*/{name}*-*.nbc")]
    kept += [warmup._markers() / name for name in warmup._with_parts(names)]
    assert len(kept) >= 24
    for path in (*kept, *root.glob("*.o")):
        copy = tmp_path / root.name / path.relative_to(root)
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    program = """
import numpy as np, fastformer as ff
from fastformer import threads
from numba.core import event

threads.available_threads = lambda: 2
with event.install_recorder("numba:compile") as recorder:
    model = ff.Transformer(ff.TransformerConfig(vocab_size=20, embed_dim=8, num_heads=2, ffn_dim=8))
    optimizer = ff.Adam(model.parameters())
    batch, targets = ff.pack([[3, 4, 5]] * 4), np.array([3, 4, 5, 6])
    ff.train_step(model, batch, targets, ff.CrossEntropyLoss(), optimizer)
print(sorted({one.data["dispatcher"].__name__ for _, one in recorder.buffer if one.is_start}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTFORMER_CACHE_DIR": str(tmp_path)},
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_another_installation_of_the_same_sources_compiles_anew(monkeypatch, tmp_path):
    """Numba finds what was compiled by the place and the time of a kernel's file."""
    monkeypatch.setattr(_compile, "CACHE_DIRECTORY", tmp_path)
    monkeypatch.setattr(_compile, "BUILD", "production")
    found = {warmup._markers()}
    for place in ("one", "other"):
        copy = tmp_path / place
        copy.mkdir()
        (copy / "_compile.py").write_text("")
        monkeypatch.setattr(_compile, "__file__", str(copy / "_compile.py"))
        for seconds in (1, 2):
            os.utime(copy / "_compile.py", (seconds, seconds))
            found.add(warmup._markers())
    assert len(found) == 5
    assert {path.parent for path in found} == {tmp_path}


def test_parts_are_compiled_before_what_calls_them():
    work = warmup._Work(warmup._with_parts(["attention.attention", "adam.adam_step"]))
    part, step = work.take(), work.take()
    assert (part, step) == ("attention.attention_forward_pairs", "adam.adam_step")
    taken = []
    waiting = threading.Thread(target=lambda: taken.extend([work.take(), work.take()]))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert taken == []
    # One that could not be compiled is left to those that call it.
    work.end(part, compiled=False)
    waiting.join()
    assert taken == ["attention.attention", None]
    work.end(step, compiled=True)
    assert work.done == ["adam.adam_step"]


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
    monkeypatch.setattr(sys, "stdin", io.StringIO("gradient.gradient_norm\nsequence_rows.gather\n"))
    before = gc.get_threshold()
    try:
        warmup.main()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
    assert capsys.readouterr().out.split() == ["gradient.gradient_norm", "sequence_rows.gather"]


def test_what_another_process_compiled_is_loaded():
    name = "matmul_bfloat16.linear_bfloat16"
    for _ in range(2):
        done = subprocess.run(warmup._command(), input=name, capture_output=True, text=True)
        assert done.stdout.split() == [name], done.stderr


@pytest.fixture
def cold(tmp_path, monkeypatch):
    markers = tmp_path / "compiled"
    monkeypatch.setattr(warmup, "_markers", lambda: markers)
    monkeypatch.setattr(warmup.threads, "available_threads", lambda: 2)
    warmup.ensure_compiled.cache_clear()
    return markers / "gradient.gradient_norm"


def test_compiles_once_and_says_so(cold, capsys):
    warmup.ensure_compiled(("gradient.gradient_norm",))
    assert cold.exists()
    assert "compiled 1 kernel in" in capsys.readouterr().err
    warmup.ensure_compiled.cache_clear()  # as in another process
    warmup.ensure_compiled(("gradient.gradient_norm",))
    assert capsys.readouterr().err == ""


def test_a_folder_of_the_same_name_is_not_taken_for_the_package(cold, tmp_path, monkeypatch):
    other = tmp_path / "fastformer"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('not the package that asks')")
    monkeypatch.chdir(tmp_path)
    warmup.ensure_compiled(("gradient.gradient_norm",))
    assert cold.exists()


def test_a_place_that_takes_no_marker_costs_the_next_start_its_time_only(cold, capsys):
    cold.parent.write_text("a file where the directory of markers should be")
    for _ in range(2):
        warmup.ensure_compiled.cache_clear()
        warmup.ensure_compiled(("gradient.gradient_norm",))
        assert "compiled 1 kernel in" in capsys.readouterr().err


def test_a_process_that_dies_leaves_the_work_to_the_first_call(cold, monkeypatch):
    def broken(command, **options):
        return subprocess_popen([sys.executable, "-c", "raise SystemExit(1)"], **options)

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", broken)
    warmup.ensure_compiled(("gradient.gradient_norm",))
    assert not cold.exists()
