"""Autoscalers: how many replicas each product asks for, from metrics as old as it reads them."""
