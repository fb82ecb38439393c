"""What runs instances: the adapters of the port `Provider`."""
