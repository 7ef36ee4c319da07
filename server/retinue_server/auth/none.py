"""NoAuth: authentication is off."""

from __future__ import annotations

from starlette.datastructures import Headers

from .principals import LOOPBACK, Principal


class NoAuth:
    """The scheme of `auth: {mode: none}`: every caller is the loopback principal."""

    def authenticate(self, headers: Headers) -> Principal:
        return LOOPBACK
