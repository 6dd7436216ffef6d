"""Runnable scenarios, each a question in its header, and under ``traces/`` the parameters of the shipped workloads.

`capacity-plan list scenarios` names them; `simulate`, `check` and the others take the name or a file.
"""
