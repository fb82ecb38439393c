"""Runs are compared: change is told from noise.

jackknife   how sure a figure is, from slices of the two runs
decisions   which of many changes are more than chance
figures     what is compared of two courses
comparing   which runs, read from the store
"""
