"""The parent process: holds the ports, owns PostgreSQL, keeps the workers alive, tells how they are.

It never imports grpc, which does not bear a process that forks.
"""
