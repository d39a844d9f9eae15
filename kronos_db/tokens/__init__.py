"""Tokens: sessions, refresh families, API keys and registered JWTs."""
