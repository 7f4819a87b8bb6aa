"""Benchmarks: `python -m benchmarks` runs all, `python -m benchmarks.NAME` one. See docs/benchmarks.md."""
