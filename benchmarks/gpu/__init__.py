"""All there is to do on a machine with a GPU: build for it, check on it, measure on it. `make gpu` runs ``benchmarks.gpu``."""
