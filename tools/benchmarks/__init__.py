"""Commands that produce the figures of docs/benchmarks.

Each compares two sides in one run and prints their ratio or difference with an interval. It may import everything else
of the project; nothing imports from here.
"""
