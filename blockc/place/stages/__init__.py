"""Pipelines: models that fit no cell, divided into stages of consecutive blocks on cells of one or several nodes.

`partition`: blocks to stages, by dynamic programming. `parts`: what some blocks take of a device. `pipelines`: which
chains, how many stages, on which devices. `rest`: the problem without them. `tables`: both as one placement.
"""
