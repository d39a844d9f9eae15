"""Queues of messages that wait for delivery."""
