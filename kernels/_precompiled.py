"""Machine code that is compiled once, kept on disk, and called by other kernels by its symbol."""

from collections.abc import Callable, Iterable
from pathlib import Path

from llvmlite import binding

from ._cache import read_verified, write_verified
from ._compile import CACHE_DIRECTORY
from ._target import CPU_FEATURES, CPU_NAME

_ENGINES: list[binding.ExecutionEngine] = []


def _target_machine() -> binding.TargetMachine:
    """Return a code generator for what Numba compiles for, as it sets its own."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(
        cpu=CPU_NAME,
        features=CPU_FEATURES,
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _optimised(text: str, machine: binding.TargetMachine) -> binding.ModuleRef:
    """Parse, check and optimise LLVM code."""
    module = binding.parse_assembly(text)
    module.triple = binding.get_process_triple()
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


class Precompiled:
    """A loaded library of machine code, whose functions are known to the linker by name."""

    def __init__(self, name: str, symbols: Iterable[str], text: Callable[[], str]) -> None:
        """Load the machine code from the cache directory, or compile it; see `precompiled`."""
        self._text = text
        self._machine = _target_machine()
        code = self._read(name)
        if code is None:
            module = _optimised(text(), self._machine)
            code = self._machine.emit_object(module)
            self._write(name, code)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), self._machine)
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _ENGINES.append(engine)  # The code lives as long as its engine.
        for symbol in symbols:
            binding.add_symbol(symbol, engine.get_function_address(symbol))

    def assembly(self) -> str:
        """Return the assembly, for tests that look at it."""
        return str(self._machine.emit_assembly(_optimised(self._text(), self._machine)))

    def _path(self, name: str) -> Path | None:
        """Return the file; its directory's name stands for the sources and the CPU."""
        return CACHE_DIRECTORY / f"{name}.o" if CACHE_DIRECTORY else None

    def _read(self, name: str) -> bytes | None:
        """Return the machine code on disk, or None where there is none, or it is damaged."""
        path = self._path(name)
        return read_verified(path) if path else None

    def _write(self, name: str, code: bytes) -> None:
        """Keep the machine code; a disk that refuses costs the next start its time, no more."""
        path = self._path(name)
        if path is not None:
            write_verified(path, code)


def precompiled(name: str, symbols: Iterable[str], text: Callable[[], str]) -> Precompiled:
    """Compile LLVM code once, and make its functions callable by their symbols.

    Args:
        name: of the file in the cache directory.    symbols: of the functions.
        text: gives the LLVM code, which takes 0.3 s: it is asked for only where no file is.
    """
    return Precompiled(name, symbols, text)
