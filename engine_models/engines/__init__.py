"""Engines, a module each: what is particular to one of them."""
