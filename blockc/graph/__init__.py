"""Blocks, chains and the graph they form."""

from __future__ import annotations

from blockc.graph.model import Block, Chain, KvLayerShape, ModelPath, replace_tensors

__all__ = ["Block", "Chain", "KvLayerShape", "ModelPath", "replace_tensors"]
