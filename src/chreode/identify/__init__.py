"""When a contrastive loss recovers the truth, and whether an augmentation lets it."""

from .coverage import coverage
from .further import (
    AnisotropicSetting,
    ModalSetting,
    SpaceSetting,
    recover_anisotropic,
    recover_in_space,
    recover_shared,
)
from .images import ImageResult, images
from .imaging.data import digits
from .recovery import Setting, recover
from .studies import diversity, encoders, ratio
from .study import Study
from .verdict import Coverage

__all__ = [
    "AnisotropicSetting",
    "Coverage",
    "ImageResult",
    "ModalSetting",
    "Setting",
    "SpaceSetting",
    "Study",
    "coverage",
    "digits",
    "diversity",
    "encoders",
    "images",
    "ratio",
    "recover",
    "recover_anisotropic",
    "recover_in_space",
    "recover_shared",
]
