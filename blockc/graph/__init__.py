"""Blocks, chains and the graph they form."""

from __future__ import annotations

from blockc.graph.model import Block, Chain, Embedding, KvLayerShape, ModelPath

__all__ = ["Block", "Chain", "Embedding", "KvLayerShape", "ModelPath"]
