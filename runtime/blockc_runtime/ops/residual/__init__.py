"""The sum of residual stream and sublayer, with a bottleneck adapter of each fine-tune beside it."""
