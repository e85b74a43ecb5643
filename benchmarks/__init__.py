"""Benchmarks: one command per table or figure, `python -m benchmarks.NAME`.

Each command prints a table and writes its records to `benchmarks/results/NAME.json`
(see `benchmarks.record`), together with the versions and the hardware that produced them.
"""
