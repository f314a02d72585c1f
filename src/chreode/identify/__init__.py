"""When a contrastive loss recovers the truth, and whether an augmentation lets it."""

from .coverage import Coverage, coverage

__all__ = ["Coverage", "coverage"]
