"""Storage URLs taken apart, and kept free of credentials."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem, available_protocols, get_filesystem_class
from fsspec.core import split_protocol

from schemas.errors import ConfigError, nearest_name

ARCHIVES = ("zip", "tar", "libarchive")
_LOCAL = ("file", "local")
_MAGIC = re.compile(r"[*?[]")
_URL_AS_PATH = re.compile(r"^([a-z][a-z0-9+.-]*):/(?!/)", re.IGNORECASE)
_USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)([^/?#]*)@", re.IGNORECASE)
_USERINFO_IN_TEXT = re.compile(r"([a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@", re.IGNORECASE)
_SECRET_NAME = (
    r"x-amz-[\w-]+|x-goog-[\w-]+|x-oss-[\w-]+|awsaccesskeyid|googleaccessid|ossaccesskeyid|signature|sig"
    r"|[\w-]*token|[\w-]*secret|password|passwd|pwd|api[_-]?key|access[_-]?key|auth|authorization"
    r"|jwt|sas|credentials?|hdnts|hdnea|hdntl"
)
_VALUE_END = r"(?![^&;\s'\"])"
# Google's and Azure's API keys come under names that as often are the address (?key=a.png): there the value
# decides. Long, of capitals, small letters and digits, without dot and slash: no file name, no content hash.
_SECRET_BY_VALUE = (
    r"(?:key|code)=(?-i:(?=[\w~%+=-]*[a-z])(?=[\w~%+=-]*[A-Z])(?=[\w~%+=-]*[0-9]))[\w~%+=-]{20,}" + _VALUE_END
)
# These mean nothing without a signature beside them (CloudFront, Azure, Google); alone they may be the address.
_COMPANION_NAME = r"expires|policy|key-pair-id|se|sp|sv|sr|st|spr|sip|ss|srt|skoid|sktid|skt|ske|sks|skv"
_SECRET = re.compile(rf"(?:{_SECRET_NAME})=|{_SECRET_BY_VALUE}", re.IGNORECASE)
_SECRET_OR_COMPANION = re.compile(rf"(?:{_SECRET_NAME}|{_COMPANION_NAME})=|{_SECRET_BY_VALUE}", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    rf"([?&;](?:(?:{_SECRET_NAME})=|(?={_SECRET_BY_VALUE})\w+=))[^&;\s'\"]+", re.IGNORECASE
)


@dataclass(frozen=True)
class Address:
    """One place in a storage.

    Attributes:
        protocol: fsspec name of the outermost filesystem.
        prefix: what a URL has before the path: `s3://`, `sftp://user@host`, or "" for http.
        path: place in that filesystem, as the filesystem itself writes it.
        inside: `::` and the URL of the archive the path is in, or "".
    """

    protocol: str
    prefix: str
    path: str
    inside: str = ""

    @property
    def url(self) -> str:
        """The whole URL; may carry credentials."""
        return f"{self.prefix}{self.path}{self.inside}"

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    @property
    def on_this_machine(self) -> bool:
        """Whether reading costs no waiting: a local file, or an archive in one."""
        return self.is_local or self.inside.startswith("::file:")

    @property
    def is_http(self) -> bool:
        return self.protocol in ("http", "https")

    def at(self, path: str) -> Address:
        """Another place in the same filesystem."""
        return replace(self, path=path)


def parse_address(url: str) -> Address:
    """Take a storage URL apart; a plain path is local and becomes absolute.

    Raises:
        ConfigError: an empty address, an unknown protocol, an archive URL that names no archive, a
            cache in front, or credentials in the URL of a storage that does not read them from there.
    """
    if not url.strip():
        raise ConfigError(
            "The address is empty. Name a folder, or any fsspec URL such as s3://bucket/photos."
        )
    head, chained, rest = url.partition("::")
    protocol = split_protocol(head)[0] or (head if chained and head in available_protocols() else "file")
    if protocol in _LOCAL:
        # File names may hold "::", so a local URL is never a chain.
        local = get_filesystem_class("file")
        return Address("file", "file://", local._strip_protocol(url if "://" in head else f"file://{url}"))
    if protocol not in available_protocols():
        raise ConfigError(
            f"Unknown storage {protocol!r} in {without_credentials(url)!r}. {nearest_name(protocol, available_protocols())}"
        )
    if protocol in ARCHIVES:
        if not rest:
            raise ConfigError(f"{head!r} names no archive. Write {protocol}://::PATH_OF_THE_ARCHIVE instead.")
        inner = parse_address(rest).url if "::" not in rest else rest
        return Address(protocol, f"{protocol}://", head.partition("://")[2].strip("/"), f"::{inner}")
    if chained and "://" not in head:
        raise ConfigError(
            f"{protocol}:: cannot stand in front of a pool. Leave it out; inside an archive's URL it is fine: "
            f"zip://::{protocol}::s3://bucket/images.zip"
        )
    if protocol in ("http", "https"):
        return Address(protocol, "", url)
    filesystem = _filesystem_class(protocol)
    path = str(filesystem._strip_protocol(url))
    if url != without_credentials(url) and path.startswith(url.partition("://")[2].partition("@")[0]):
        raise ConfigError(
            f"{protocol}:// takes no user and password in the URL {without_credentials(url)!r}. "
            "Give them in the environment or in the storage options."
        )
    bare = url.rstrip("/")
    prefix = bare.removesuffix(path) if path and bare.endswith(path) else f"{protocol}://"
    return Address(protocol, prefix, path)


def split_glob(path: str) -> tuple[str, str]:
    """Split a path before its first part that holds `*`, `?` or `[`: ("a/b", "*/c.jpg")."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return "/".join(parts[:first]), "/".join(parts[first:])


def without_credentials(url: str) -> str:
    """The URL without user, password and signed query parameters, of every part of a chain.

    A user name alone stays where it is no secret (`abfs://container@account`, `sftp://user@host`).
    """
    if url.startswith("file://"):
        return url
    return "::".join(_clean_part(part) for part in url.split("::"))


def check_addresses(**given: str | Path | Iterable[str | Path] | None) -> None:
    """Check all addresses of a run (a pool, a store …), by what each is, `_` for a blank; None is not given.

    To be called before the flow is: Prefect keeps a run's parameters from before it begins.

    Raises:
        ConfigError: one is empty (which would mean the working folder), or carries credentials. The message
            is free of them, and says where they belong.
    """
    for what, addresses in given.items():
        for address in (addresses,) if isinstance(addresses, str | Path) else addresses or ():
            # A URL that was made a path has lost a slash.
            url = _URL_AS_PATH.sub(r"\1://", str(address)) if isinstance(address, Path) else address
            _check_address(url, what.replace("_", " "))


def redact(text: str) -> str:
    """Free text (an exception's message) with the credentials in its URLs blotted out."""
    return _SECRET_IN_TEXT.sub(r"\1***", _USERINFO_IN_TEXT.sub(r"\1", text))


def printable(text: str) -> str:
    """Text that can be stored as UTF-8: bytes of a file name that are not Unicode become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def last_name(url: str) -> str:
    """The file name at the end of a URL's path, percent-decoded, query left out."""
    return Path(unquote(urlsplit(url).path)).name


def _check_address(url: str, what: str) -> None:
    if not url:
        raise ConfigError(f"The {what} needs an address; the one given is empty.")
    clean = without_credentials(url)
    if clean != url:
        raise ConfigError(
            f"The {what} {clean} carries credentials, and Prefect keeps addresses in its database and logs. "
            "Give them in the environment or in fsspec's configuration (docs/pool.md shows how); "
            "signed URLs of images belong in a list."
        )


def _filesystem_class(protocol: str) -> type[AbstractFileSystem]:
    try:
        return get_filesystem_class(protocol)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// needs a package that is not installed: {error}") from error


def _clean_part(part: str) -> str:
    protocol = split_protocol(part)[0]
    if protocol is None or protocol in (*ARCHIVES, *_LOCAL, "memory"):
        return part
    found = _USERINFO.match(part)
    if found and (":" in found[2] or protocol in ("http", "https")):
        part = found[1] + part[found.end() :]
    before, question, query = part.partition("?")
    if question and any(_SECRET.match(item) for item in query.split("&")):
        kept = [item for item in query.split("&") if not _SECRET_OR_COMPANION.match(item)]
        part = before + ("?" + "&".join(kept) if kept else "")
    return part
