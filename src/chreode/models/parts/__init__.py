"""Parts that some models are made of, and no other code uses."""
