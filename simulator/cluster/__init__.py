"""Replicas behind a router, on one clock."""
