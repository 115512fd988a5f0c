"""Training against the reference procedure: ``python -m benchmarks.training``."""
