"""What tests start beside the server."""
