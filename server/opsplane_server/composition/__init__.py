"""What each service consists of: the adapters behind its ports, chosen and put together."""
