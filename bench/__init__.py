"""Benchmarks: peers side by side in one run, one CSV of results, one plotter.

    python -m bench              every suite, into bench/results.csv
    python -m bench.plot         the pictures in docs/img
    python -m bench.table        the tables in docs/benchmarks.md

A suite is a module with ``cases(quick)``; see bench/paired.py, and docs/benchmarks.md for what each
figure means.
"""
