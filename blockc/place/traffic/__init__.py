"""Placement by what is expected of models: loads, targets and rules, in whole numbers (see `packing`)."""
