"""Linear layers with the sides of many fine-tunes."""
