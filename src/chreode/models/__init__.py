"""One model, one file. A file ``scvi.py`` defines the class whose lower-cased name is ``scvi``."""

from ..registry import find, keys

__all__ = ["find", "keys"]
