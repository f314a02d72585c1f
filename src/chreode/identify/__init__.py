"""When a contrastive loss recovers the truth, and whether an augmentation lets it."""

from .images import ImageResult, images
from .imaging.data import digits

__all__ = ["ImageResult", "digits", "images"]
