"""Runs a model one layer at a time, whatever its size; measures drift; writes the report."""
