"""Token ids to vectors, with rows and low-rank changes of each fine-tune."""
