"""Keys, sealing and the marks of the contract."""
