"""Blocks, chains and the graph they form."""

from __future__ import annotations

from blockc.graph.model import Block, Chain, KvLayerShape, ModelPath

__all__ = ["Block", "Chain", "KvLayerShape", "ModelPath"]
