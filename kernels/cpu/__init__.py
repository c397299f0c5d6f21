"""Fast copies of the reference for CPUs, in numba: the same bytes, the GIL released."""
