"""Executors: what runs the steps of the scheduler. See `step.py` for their contract."""
