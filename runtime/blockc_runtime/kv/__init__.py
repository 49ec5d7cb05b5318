"""The KV cache: `index` says which page holds what, `pool` is the memory it speaks of."""
