"""Who is asking, and for whom."""

from __future__ import annotations

from a2a.auth.user import User


class Principal(User):
    """Who is asking, as far as the server could make sure."""

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
"""With `auth: {mode: none}`, everyone: whoever reaches the server may act for every user."""
