"""Time and memory of the loss beside its competitors: ``python -m benchmarks.run``."""
