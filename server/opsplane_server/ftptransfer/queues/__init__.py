"""Where tasks come from, besides RPC."""
