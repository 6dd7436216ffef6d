"""Calibration of a deployment by a user's own measurements."""
