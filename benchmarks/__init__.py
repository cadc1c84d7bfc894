"""Benchmarks: `python -m benchmarks NAME`. Each finished arm writes a small JSON file to benchmarks/results."""
