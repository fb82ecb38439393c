"""Figures of load tests: from OTLP exports to stored rows, live windows and final results. No I/O.

otlp        an OTLP export becomes rows
rows        a row: what one load generator counted in about a second
packing     a row as bytes, as it is stored
histograms  response times that merge without losing their percentiles
windows     rows of all load generators become windows of a run
results     rows become the final figures
targets     figures are judged
"""
