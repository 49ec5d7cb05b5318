"""Linears of which each token uses the few that it chose (mixture of experts)."""
