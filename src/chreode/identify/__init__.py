"""When a contrastive loss recovers the truth, and whether an augmentation lets it."""
