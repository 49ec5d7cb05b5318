"""Root mean square normalisation and rotary position embedding."""
