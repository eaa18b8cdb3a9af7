"""The benchmarks of `make benchmark-…`. The application itself uses nothing in here."""
