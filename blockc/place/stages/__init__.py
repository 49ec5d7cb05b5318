"""Pipelines: models that fit no cell, divided into stages of consecutive blocks on cells of one or several nodes.

`partition`: blocks to stages, by dynamic programming. `parts`: what some blocks take of a device. `pipelines`: which
chains, how many stages, on which devices. `replan`: the same from an earlier plan. `rest`: the problem without them.
`shed`: which load is left out. `bound`: what no plan does without. `tables`: both as one placement.
"""
