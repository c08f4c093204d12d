"""Shared by the endpoints of every kind: the request queue, error responses, and disconnected clients."""
