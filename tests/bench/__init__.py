"""Benchmarks: each compares ours with a reference in one run, alternating, and prints and keeps the ratio."""
