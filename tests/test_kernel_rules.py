"""Rules that every kernel file keeps, each proven on planted faults."""

import ast
from collections.abc import Iterator

import pytest
from program import ROOT

SOURCES = {path.name: path.read_text() for path in sorted((ROOT / "kernels").glob("*.py"))}
COMPILERS = {
    *("jit", "njit", "jit_module", "vectorize", "guvectorize", "stencil", "cfunc", "generated_jit"),
}
# What makes ops of kernels, and what runs them: test_ops.py and test_program.py hold these to
# twins. The driver's own twin is given ops and arrays, where it has addresses.
OP_FILES = {"op.py", "program.py"}
UNSAFE_FLAGS = {"fast", "nnan", "ninf"}
# In a kernel these allocate, or call BLAS, or sum in an order that the source does not show.
ARRAY_FUNCTIONS = {
    *("sum", "mean", "dot", "vdot", "matmul", "einsum", "prod", "var", "std", "max", "min"),
    *("cumsum", "argmax", "argmin", "inner", "outer", "tensordot"),
}


def names_of(node: ast.AST) -> Iterator[str]:
    """Yield the names and attributes that a piece of code mentions."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.alias):
            yield part.name.rpartition(".")[2]


def kernels_of(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Yield each function that `@kernel` decorates, and whether it is parallel."""
    for function in ast.walk(tree):
        for decorator in function.decorator_list if isinstance(function, ast.FunctionDef) else ():
            if "kernel" in names_of(decorator):
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                yield function, any(ast.unparse(word) == "parallel=True" for word in keywords)


def pranges_of(tree: ast.AST) -> list[ast.For]:
    return [
        loop
        for loop in ast.walk(tree)
        if isinstance(loop, ast.For)
        and isinstance(loop.iter, ast.Call)
        and "prange" in names_of(loop.iter.func)
    ]


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def public_kernels(file: str, tree: ast.Module) -> list[ast.FunctionDef]:
    """Return what others may call: parallel kernels, and what has a twin and calls one."""
    if file.startswith("_"):
        return []
    functions = functions_of(tree)
    parallel = {function.name for function, is_parallel in kernels_of(tree) if is_parallel}
    return [
        function
        for name, function in functions.items()
        if not name.startswith("_") and (name in parallel or (f"{name}_reference" in functions))
    ]


def only_compile_calls_numba(file: str, tree: ast.Module) -> Iterator[str]:
    if file != "_compile.py":
        yield from COMPILERS & set(names_of(tree))


def no_unsafe_fastmath(file: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "fastmath":
            if isinstance(node.value, ast.Constant):
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in UNSAFE_FLAGS:
            yield repr(node.value)


def every_public_kernel_has_a_twin(file: str, tree: ast.Module) -> Iterator[str]:
    functions = functions_of(tree)
    public = public_kernels(file, tree)
    for function in public:
        twin = functions.get(f"{function.name}_reference")
        if twin is None:
            yield f"{function.name} has no twin"
        elif file not in OP_FILES and ast.unparse(twin.args) != ast.unparse(function.args):
            yield f"{function.name} and its twin have other arguments"
    called = {name for function in public for name in names_of(function)}
    for function, parallel in kernels_of(tree):
        if parallel and function.name.startswith("_") and function.name not in called:
            yield f"{function.name} is parallel, and nothing that has a twin calls it"


def one_prange_in_parallel_kernels_only(file: str, tree: ast.Module) -> Iterator[str]:
    parallel_functions = [f for f, parallel in kernels_of(tree) if parallel]
    for function in parallel_functions:
        if len(pranges_of(function)) != 1:
            yield f"{function.name} has {len(pranges_of(function))} loops of prange"
    if sum(len(pranges_of(f)) for f in parallel_functions) != len(pranges_of(tree)):
        yield "prange outside a parallel kernel"


def no_array_functions(file: str, tree: ast.Module) -> Iterator[str]:
    for function, _ in kernels_of(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr in ARRAY_FUNCTIONS:
                yield f"{function.name}: {ast.unparse(node)}"
            elif isinstance(getattr(node, "op", None), ast.MatMult):
                yield f"{function.name}: @"


def no_print_and_no_assert(file: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id == "print"):
            yield ast.unparse(node)


def nothing_carried_across_prange(file: str, tree: ast.Module) -> Iterator[str]:
    """What one turn of the loop leaves for another depends on the number of threads."""
    for loop in pranges_of(tree):
        assigned = {
            name
            for node in ast.walk(loop)
            for target in getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.For)
            and not (isinstance(node, ast.Assign) and mentions_itself(node))
            for name in names_of(target)
        }
        for node in ast.walk(loop):
            if isinstance(node, ast.Assign) and mentions_itself(node):
                written = node.targets[0]
            elif isinstance(node, ast.AugAssign):
                written = node.target
            else:
                continue
            # An element may belong to another turn as well, so it is not updated here at all.
            if isinstance(written, ast.Subscript) or not set(names_of(written)) <= assigned:
                yield ast.unparse(node)


def mentions_itself(node: ast.Assign) -> bool:
    """Tell whether a value is computed from what it replaces, as in `total = total + x`."""
    target = ast.unparse(node.targets[0])
    return any(
        ast.unparse(part) == target
        for part in ast.walk(node.value)
        if isinstance(part, ast.Name | ast.Subscript)
    )


def imports_stay_within_kernels(file: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            own = node.level == 1
            above = node.level > 1 or (node.module or "").split(".")[0] in ("fastformer", "kernels")
            if above and not own:
                yield ast.unparse(node)
        elif isinstance(node, ast.Import):
            if any(name.name.split(".")[0] in ("fastformer", "kernels") for name in node.names):
                yield ast.unparse(node)


PARALLEL = "@kernel(parallel=True)\n"
LOOP = "def f(x, out):\n  total = 0\n  for i in prange(9):\n    "
# Each rule, with sources that break it and one that keeps it.
RULES = [
    (
        only_compile_calls_numba,
        ["from numba import njit", "import numba\n@numba.jit\ndef f(): pass", "numba.njit(f)"],
        "from numba import prange",
    ),
    (
        no_unsafe_fastmath,
        ["numba.njit(f, fastmath=True)", "flags = {'nnan', 'contract'}", "builder.fadd('fast')"],
        "numba.njit(f, fastmath=FASTMATH)",
    ),
    (
        every_public_kernel_has_a_twin,
        [
            PARALLEL + "def f(x): pass",
            PARALLEL + "def f(x): pass\ndef f_reference(y): pass",
            PARALLEL + "def f(x, y): pass\ndef f_reference(y, x): pass",
            PARALLEL + "def _f(x): pass\ndef f(x): _f(x)",
        ],
        PARALLEL
        + "def _f(x): pass\ndef f(x): _f(x)\ndef f_reference(x): pass\n@kernel\ndef g(): pass",
    ),
    (
        one_prange_in_parallel_kernels_only,
        [
            "@kernel\n" + LOOP + "pass",
            LOOP + "pass",
            PARALLEL + LOOP + "pass\n  for i in prange(9): pass",
            PARALLEL + LOOP + "for j in numba.prange(9): pass",
            PARALLEL + "def f(x): pass",
        ],
        PARALLEL + LOOP + "pass",
    ),
    (
        no_array_functions,
        [f"@kernel\ndef f(x): return {bad}" for bad in ("np.sum(x)", "x.mean()", "x @ x")],
        "def f_reference(x): return np.sum(x @ x)",
    ),
    (no_print_and_no_assert, ["print(1)", "assert x"], "store(x)"),
    (
        nothing_carried_across_prange,
        [
            PARALLEL + LOOP + line
            for line in (
                "total += x[i]",
                "total = total + x[i]",
                "total = max(total, x[i])",
                "out[0] += x[i]",
                "out[i % 2] = out[i % 2] + x[i]",
                "for j in range(9): out[j] += x[i, j]",
            )
        ],
        PARALLEL + LOOP + "part = 0\n    part += x[i]\n    out[i] = part",
    ),
    (
        imports_stay_within_kernels,
        ["from ..checks import fail", "from fastformer import checks", "import fastformer.checks"],
        "import numpy as np\nfrom . import _simd\nfrom ._compile import kernel",
    ),
]
RULE_NAMES = [rule.__name__ for rule, _, _ in RULES]


@pytest.mark.smoke
@pytest.mark.parametrize("rule", [rule for rule, _, _ in RULES], ids=RULE_NAMES)
def test_kernels_keep_the_rule(rule):
    assert len(SOURCES) >= 15
    broken = {file: list(rule(file, ast.parse(text))) for file, text in SOURCES.items()}
    assert not {file: found for file, found in broken.items() if found}


@pytest.mark.parametrize(("rule", "bad", "good"), RULES, ids=RULE_NAMES)
def test_the_rule_finds_planted_faults(rule, bad, good):
    for source in bad:
        assert list(rule("planted.py", ast.parse(source))), source
    assert not list(rule("planted.py", ast.parse(good)))


def missing_tests(file: str, source: str, test_source: str) -> list[str]:
    """Return what a kernel file's test file does not call with one of its public kernels."""
    calls = {
        (ast.unparse(call.func), ast.unparse(call.args[0]))
        for call in ast.walk(ast.parse(test_source))
        if isinstance(call, ast.Call) and call.args
    }
    kernels = [function.name for function in public_kernels(file, ast.parse(source))]
    needed = [
        (check, name) for name in kernels for check in ("assert_equals_twin", "assert_same_bits")
    ]
    missing = [f"{check}({name})" for check, name in needed if (check, name) not in calls]
    if (
        any(name.endswith("_backward") for name in kernels)
        and "assert_gradients" not in test_source
    ):
        missing.append("assert_gradients")
    return missing


@pytest.mark.parametrize(
    "file", [file for file in SOURCES if not file.startswith("_") and file not in OP_FILES]
)
def test_every_kernel_is_held_to_its_twin_and_to_its_bits(file):
    tests = (ROOT / "tests" / f"test_{file}").read_text()
    assert public_kernels(file, ast.parse(SOURCES[file]))
    assert not missing_tests(file, SOURCES[file], tests)


def test_a_kernel_without_tests_is_found():
    source = PARALLEL + "def f_backward(x): pass"
    tests = "assert_same_bits(f_backward, x)\nassert_equals_twin(g, g_reference)"
    assert missing_tests("planted.py", source, tests) == [
        "assert_equals_twin(f_backward)",
        "assert_gradients",
    ]
