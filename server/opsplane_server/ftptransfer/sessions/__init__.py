"""Sessions with FTP servers: the protocol, its data connections, and the pool that keeps them."""
