"""What all services share about RPCs: the server, its interceptors, and the conventions of `docs/api.md`."""
