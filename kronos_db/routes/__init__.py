"""Endpoints, what they require, and the quotas of who calls them."""
