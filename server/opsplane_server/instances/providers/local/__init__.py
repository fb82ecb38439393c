"""Instances as processes of this machine, in folders of its data directory."""
