"""Fast copies of the reference for GPUs, in Triton: torch CUDA tensors in and out."""
