"""Data sets: rows that simulated users draw from, uploaded, queried or made up."""
