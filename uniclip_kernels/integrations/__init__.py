"""The losses of other packages on these kernels, one file a package: the same names and arguments. ``docs/trainers.md``."""
