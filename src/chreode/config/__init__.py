"""Options of models and arguments of functions: declared, checked, and described."""

from .options import as_dict, config, describe, from_dict, param
from .words import WORDS, worded

__all__ = ["WORDS", "as_dict", "config", "describe", "from_dict", "param", "worded"]
