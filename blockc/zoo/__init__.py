"""The zoo: tensors and blobs by content digest, each stored once, verified when read."""

from __future__ import annotations

from blockc.zoo.store import StoredTensor, TensorBytes, Zoo

__all__ = ["StoredTensor", "TensorBytes", "Zoo"]
