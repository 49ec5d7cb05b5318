"""Parameters of one dimension that are broadcast over tokens, with another one for each fine-tune."""
