"""The gRPC data-access server of the Kronos platform."""

__version__ = "0.1.0"
