"""A client of a server's admin API, for commands: an error ends the command with its reason."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from .options import refuse

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 120.0


@contextmanager
def connect(url: str, key: str | None) -> Generator[httpx.Client]:
    """A client of the API at this server. Its failures inside of the block end the command."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=f"{url.rstrip('/')}/api/v1", headers=headers, timeout=_TIMEOUT_S) as client:
            yield client
    except httpx.ConnectError:
        refuse(f"no server answers at {url}: start one with `retinue serve`, or name another with --url", 1)
    except httpx.RemoteProtocolError:
        refuse(f"{url}: the response broke off: the server's log says why", 1)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        refuse(f"{url}: {error or type(error).__name__}", 1)


class ScopedClient:
    """Calls the API about the memories of one user in one space."""

    def __init__(self, client: httpx.Client, *, user: str, space: str, tenant: str) -> None:
        self._client = client
        self._scope = {"user": user, "space": space, "tenant": tenant}

    def __call__(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        params = {**self._scope, **(query or {})}
        return value_of(self._client.request(method, path, params=params, json=body))


@contextmanager
def connect_to_scope(url: str, key: str | None, user: str, space: str, tenant: str) -> Generator[ScopedClient]:
    with connect(url, key) as client:
        yield ScopedClient(client, user=user, space=space, tenant=tenant)


def value_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response. An error response ends the command."""
    if response.is_error:
        fail(response)
    found: dict[str, Any] = response.json()
    return found


def fail(response: httpx.Response) -> NoReturn:
    """End the command with the reason of an error response."""
    try:
        reason = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        reason = f"HTTP {response.status_code}"
    refuse(str(reason), 1)


def quoted(value: str) -> str:
    """An id as one segment of a path."""
    return quote(value, safe="")
