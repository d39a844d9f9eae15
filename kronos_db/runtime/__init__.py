"""What every domain stands on, and nothing about any domain."""
