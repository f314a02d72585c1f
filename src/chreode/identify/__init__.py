"""The laboratory: under which augmentations and encoders a contrastive loss recovers the truth."""

from .images import ImageResult, images
from .imaging.data import digits

__all__ = ["ImageResult", "digits", "images"]
