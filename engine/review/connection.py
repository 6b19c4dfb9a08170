"""HTTP to a Label Studio server: both kinds of token, patience with what passes, and errors that say what to do.

No error holds a token, a mask or what the server said of its own paths.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

import httpx

from schemas.errors import ConfigError, TransientError

_TRIES = 4
_WAIT_S = 0.5
_REFRESH_S = 240  # an access token lives five minutes


class Connection:
    """Requests to one server, as one user.

    Args:
        url: of the server.
        token: the user's legacy token or personal access token.
        timeout_s: of a request.

    Attributes:
        host: of the server, with its port if it names one.
        waited_s: seconds that requests were under way so far.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 120.0) -> None:
        self.url = url.rstrip("/")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(
                "The address of Label Studio must look like http://127.0.0.1:8080 or https://labels.example.org"
            )
        if parsed.userinfo:
            raise ConfigError(
                "Put no password into the address of Label Studio: give a token in LABEL_STUDIO_API_KEY."
            )
        self.host = f"{parsed.host}:{parsed.port}" if parsed.port else parsed.host
        self._token = token.strip()
        if not self._token:
            raise ConfigError(
                "Label Studio needs a token. Set LABEL_STUDIO_API_KEY (Account & Settings, Access Token)."
            )
        self._access, self._fresh_until = "", 0.0
        self.waited_s = 0.0
        # No proxy of the environment leads back to this machine; a transport that is given goes through none.
        direct = httpx.HTTPTransport() if _is_loopback(parsed.host) else None
        # Kept connections cost 40 ms a request with the server that Label Studio ships with.
        self._client = httpx.Client(timeout=timeout_s, headers={"Connection": "close"}, transport=direct)

    def __repr__(self) -> str:
        return f"Connection({self.url})"

    def get(
        self, path: str, params: Mapping[str, Any] | None = None, *, missing_is_none: bool = False
    ) -> Any:
        """JSON of a GET; asked again when the server fails in passing.

        Args:
            path: below the server's address, such as `/api/projects`.
            missing_is_none: None for 404, instead of an error.
        """
        return self._send("GET", path, params=params, tries=_TRIES, missing_is_none=missing_is_none)

    def change(
        self, method: str, path: str, json: Any = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """JSON of a request that may be done twice with the same effect (PATCH, PUT, DELETE); asked again likewise."""
        return self._send(
            method, path, json=json, params=params, tries=_TRIES, missing_is_none=method == "DELETE"
        )

    def post(self, path: str, json: Any, params: Mapping[str, Any] | None = None) -> Any:
        """JSON of a POST. Never asked again: it may have been done although no answer came."""
        return self._send("POST", path, json=json, params=params, tries=1)

    def _send(
        self,
        method: str,
        path: str,
        *,
        tries: int,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        missing_is_none: bool = False,
    ) -> Any:
        for attempt in range(tries):
            last = attempt == tries - 1
            begun = time.monotonic()
            try:
                response = self._client.request(
                    method,
                    self.url + path,
                    json=json,
                    params=params,
                    headers={"Authorization": self._authorization()},
                )
            except httpx.HTTPError as error:
                if last:
                    raise TransientError(
                        f"Label Studio at {self.url} does not answer ({type(error).__name__}). Is it running? Then run the same "
                        "command again: it goes on from there."
                    ) from None
            else:
                self.waited_s += time.monotonic() - begun
                if response.status_code == 404 and missing_is_none:
                    return None
                if (response.status_code < 500 and response.status_code != 429) or last:
                    return self._read(response, method, path)
            time.sleep(_WAIT_S * 2**attempt)
        raise AssertionError("unreachable")

    def _read(self, response: httpx.Response, method: str, path: str) -> Any:
        status, what = response.status_code, f"{method} {path.partition('?')[0]}"
        if response.is_redirect:
            raise ConfigError(self._say_redirect(response))
        if status in (401, 403):
            raise ConfigError(
                f"Label Studio at {self.url} refuses the token ({status}). Set LABEL_STUDIO_API_KEY to the access token of a user "
                "who may use the project; legacy tokens have to be allowed in the organisation's settings."
            )
        if status == 404:
            raise ConfigError(
                f"Label Studio at {self.url} has no {path.partition('?')[0]}. Was the project deleted?"
            )
        if status == 413:
            raise ConfigError(
                f"Label Studio at {self.url} takes no body of this size (413). Raise the limit of the proxy in front of it to 250 MB."
            )
        if status >= 500 or status == 429:
            raise TransientError(
                f"Label Studio at {self.url} failed ({status}, {what}). Look into its log; then run the same command again: it goes "
                "on from there."
            )
        if status >= 400:
            raise ConfigError(f"Label Studio at {self.url} refuses {what} ({status}): {_reason(response)}")
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise TransientError(
                f"Label Studio at {self.url} sent half an answer, or none of its own ({what}). Is it really Label Studio that "
                "answers there? Then run the same command again."
            ) from None

    def _say_redirect(self, response: httpx.Response) -> str:
        """Where it leads, by scheme and host alone: the rest may hold secrets. It is not followed: a POST would become a GET."""
        here = httpx.URL(self.url)
        there = response.next_request.url if response.next_request else here
        origins = [f"{of.scheme}://{of.netloc.decode()}" for of in (here, there)]
        if origins[0] == origins[1]:
            return (
                f"Label Studio at {self.url} redirects to another path of its own ({response.status_code}). Give its address with "
                "the path that it lies under: --queue"
            )
        return (
            f"Label Studio at {self.url} redirects to {origins[1]} ({response.status_code}). If it is there, write --queue "
            f"{origins[1]}{here.path.rstrip('/')}"
        )

    def _authorization(self) -> str:
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        if time.monotonic() >= self._fresh_until:  # a personal access token only buys short-lived ones
            answer = self._client.post(f"{self.url}/api/token/refresh", json={"refresh": self._token})
            self._access = str((self._read(answer, "POST", "/api/token/refresh") or {}).get("access", ""))
            self._fresh_until = time.monotonic() + _REFRESH_S
        return f"Bearer {self._access}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(response: httpx.Response) -> str:
    """What a refusal says of the fields concerned, short: the rest may quote what was sent."""
    try:
        body = response.json()
    except ValueError:
        return "it does not say why"
    fields = body.get("validation_errors") or body if isinstance(body, dict) else {}
    said = body.get("detail", "") if isinstance(body, dict) else ""
    return f"{str(said)[:120]} {', '.join(sorted(map(str, fields)))[:120]}".strip()
