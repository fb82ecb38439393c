"""The Opsplane server: one gRPC backend for five platform services."""
