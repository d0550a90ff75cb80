"""Other people's checkpoints, and ours for them."""
