"""What Numba compiles for, which `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` may choose.

It is not always the CPU at hand: machines that share a cache compile for one that all of them have,
and must then have the same registers.
"""

from llvmlite import binding
from numba.core.registry import cpu_target

from ._environment import choice

_CODE = cpu_target.target_context.codegen()
TRIPLE, CPU_NAME, CPU_FEATURES = map(str, _CODE.magic_tuple())

# A fused multiply-add of 512 bits, of which the code generator makes what the CPU has.
_PROBE = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define void @probe(ptr %p) {
  %x = load <16 x float>, ptr %p, align 4
  %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> %x)
  store <16 x float> %y, ptr %p, align 4
  ret void
}
"""


def is_x86() -> bool:
    """Tell whether code is compiled for an x86 processor."""
    return TRIPLE.startswith(("x86", "i386", "i686"))


def has_feature(name: str) -> bool:
    """Tell whether a feature is asked for by its name, as LLVM spells it."""
    return f"+{name}" in CPU_FEATURES.split(",")


def _native_bits() -> int:
    """Return the width of the widest registers that have fused multiply-adds, at least 128.

    A name alone may stand for features, so the code generator is asked, and not a list of them.
    """
    assembly = _CODE._tm.emit_assembly(binding.parse_assembly(_PROBE)) if is_x86() else ""
    lines = [line for line in assembly.splitlines() if "vfmadd" in line]
    if any("zmm" in line for line in lines):
        return 512
    return 256 if any("ymm" in line for line in lines) else 128


def _vector_bits() -> int:
    """Return the width of the vector registers, or the forced one."""
    forced = choice("FASTFORMER_VECTOR_BITS", ("0", "128", "256", "512"), "")
    return int(forced) if forced else NATIVE_BITS


NATIVE_BITS = _native_bits()
VECTOR_BITS = _vector_bits()
