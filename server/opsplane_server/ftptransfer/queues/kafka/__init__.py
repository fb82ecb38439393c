"""The Kafka queue: messages become transfers, and what came of them is published.

`intake` and `publisher` are the only modules that speak with Kafka.
"""
