"""Keys and values that fine-tunes put at the first positions of a sequence, whatever was computed there."""
