"""Adapters of the platform's stores."""
