"""`python -m opsplane.cli`, where the console script is not installed."""

from opsplane.cli import main

main()
