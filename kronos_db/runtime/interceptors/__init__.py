"""The chain that every call passes, one file per interceptor."""
