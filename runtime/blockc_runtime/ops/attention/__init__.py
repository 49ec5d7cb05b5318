"""Causal attention of many requests over a paged cache."""
