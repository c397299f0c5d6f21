"""Bytes <-> named tensors, and the transaction that writes files. Knows files, never models."""
