"""The benchmarks of `make benchmark-…`; the application does not use this code."""
