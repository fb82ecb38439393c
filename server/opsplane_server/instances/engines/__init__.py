"""Engines: what is said to their servers in SQL, whoever runs them."""
