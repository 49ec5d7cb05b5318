"""Attention over whole texts in both directions, and their pooling: no cache, no positions to come."""
