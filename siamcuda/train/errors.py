"""The one exception that means "what you gave me cannot work", as opposed to a bug of ours."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """A setting, a file or a folder that cannot be used; the message names it and says why."""
