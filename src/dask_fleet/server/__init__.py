"""The server: the ASGI application, its routes, and the process that joins all parts."""
