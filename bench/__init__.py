"""Benchmarks. A package, so that no other module named bench, wherever it is installed, is taken for it."""
