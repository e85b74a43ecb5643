"""Models and data of the tests and benchmarks; they use `avbvi` and are not part of its wheel."""
