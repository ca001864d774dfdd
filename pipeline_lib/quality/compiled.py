"""How the kernels of this folder are compiled: with explicit signatures, from a cache, without the GIL and without reference
counts.

Reference counts would cost more than the work: numba counts every array that a helper gets, atomically. Code without them cannot
allocate, so scratch comes from outside. Constants that a kernel takes from another module are compiled into it: after such a
change the kernel's own file must change too, or numba's cache keeps the old value.
"""

from __future__ import annotations

from typing import Any

KERNEL: Any = {"nogil": True, "cache": True, "_nrt": False}
HELPER: Any = {**KERNEL, "forceinline": True}  # small, and called for every word
TEXT, OFFSETS = "Array(u1, 1, 'C', readonly=True)", "Array(i8, 1, 'C', readonly=True)"  # Arrow buffers may be immutable
