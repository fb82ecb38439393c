"""A TCP proxy, one process a machine: stable ports in front of the nodes of highly available instances.

It is a process of its own so that connections through it outlive our server, and it knows no instance: it follows a
file of routes (`routes`), and whoever changes that file sends it a signal (`process`).
"""
