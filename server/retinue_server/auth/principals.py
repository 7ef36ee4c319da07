"""The principal: who authenticated."""

from __future__ import annotations

from a2a.auth.user import User


class Principal(User):
    """The caller of a request, as far as its credentials prove it."""

    def __init__(self, name: str, *, authenticated: bool) -> None:
        self._name = name
        self._authenticated = authenticated

    @property
    def is_authenticated(self) -> bool:
        return self._authenticated

    @property
    def user_name(self) -> str:
        return self._name


LOOPBACK = Principal("loopback", authenticated=False)
"""Every caller's principal if authentication is off; it may act for every user."""
