"""Comparing the simulator with what was recorded or measured."""
