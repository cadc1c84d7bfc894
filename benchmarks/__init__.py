"""Measurements: `python -m benchmarks NAME`. Each finished arm leaves a small JSON beside its table."""
