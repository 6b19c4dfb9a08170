"""What a Label Studio server needs before it starts: its packages, its secrets, its environment variables.

Nothing of the project's own environment gets in, and none of its packages get out.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from schemas.errors import ConfigError

_PINS = Path(__file__).parents[2] / "label-studio.lock"
# What Label Studio may see of the caller's environment. It takes settings also from names such as DEBUG, HOST or CI.
_PASSED = {"PATH", "HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
# What must not lead the installer to another Python.
_FOREIGN = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT"}
_SETTINGS = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
    "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
    "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
    "LABEL_STUDIO_SENTRY_DSN": "",
    "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    "PYTHONUNBUFFERED": "1",
}
# The networks that Label Studio itself keeps webhooks from, less 127.0.0.0/8.
_BANNED = (
    "0.0.0.0/8,10.0.0.0/8,100.64.0.0/10,169.254.0.0/16,172.16.0.0/12,192.0.0.0/24,192.0.2.0/24,192.88.99.0/24,"
    "192.168.0.0/16,198.18.0.0/15,198.51.100.0/24,203.0.113.0/24,224.0.0.0/4,233.252.0.0/24,240.0.0.0/4,"
    "255.255.255.255/32,::/128,::1/128,::ffff:0:0/96,::ffff:0:0:0/96,64:ff9b::/96,64:ff9b:1::/48,100::/64,"
    "2001:0000::/32,2001:20::/28,2001:db8::/32,2002::/16,fc00::/7,fe80::/10,ff00::/8"
)

_TETHER = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read -r _ <&3; kill "$server"; } 2>/dev/null & tether=$!
wait "$server"; code=$?
kill "$tether" 2>/dev/null
exit "$code"
"""


def install_server(environment: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Install the pinned Label Studio and make an empty database of it, unless both are there (1 GB, some minutes).

    Args:
        environment: folder of the environment; several servers may share it. One that is half made is made anew.
        tell: takes a sentence about what is done now.

    ConfigError: there is no uv, or it failed.
    """
    stamp, wanted = environment / ".installed", hashlib.sha256(_PINS.read_bytes()).hexdigest()

    def done() -> bool:
        return stamp.is_file() and stamp.read_text() == wanted and (environment / "bin" / "python").exists()

    if done():
        return
    beside = Path(sys.prefix) / "bin" / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if not uv:
        raise ConfigError(
            f"Label Studio is installed by uv, which is not on the PATH nor {beside}. Run: make install"
        )
    environment.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(environment.with_name(environment.name + ".lock")):
        if done():
            return
        shutil.rmtree(environment, ignore_errors=True)
        variables = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        python, command = environment / "bin" / "python", environment / "bin" / "label-studio"
        tell(f"installing Label Studio into {environment} (once, some minutes)")
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], variables, tell)
        _run([uv, "pip", "sync", "--python", str(python), str(_PINS)], variables, tell)
        tell("preparing an empty database (once, a minute or two)")
        _run([str(command), "init", "--quiet"], _variables(environment / "prepared"), lambda _: None)
        stamp.write_text(wanted)


def copy_empty_database(environment: Path, data: Path) -> None:
    """Give a data folder the empty database of the environment, unless it has one: migrations take minutes."""
    database = data / "label_studio.sqlite3"
    if not database.exists():
        part = database.with_suffix(".part")
        shutil.copy(environment / "prepared" / database.name, part)
        part.replace(database)


def server_variables(folder: Path, media: Path, loopback_webhooks: bool) -> dict[str, str]:
    """The whole environment of the server of a folder, secrets included.

    Args:
        folder: its `data` is Label Studio's, its secrets are those of `read_secrets`.
        media: folder whose files may be served.
        loopback_webhooks: let webhooks go to this machine; the other networks closed to them by default stay closed.
    """
    known = read_secrets(folder)
    variables = {
        **_variables(folder / "data"),
        "LABEL_STUDIO_USERNAME": known["email"],
        "LABEL_STUDIO_PASSWORD": known["password"],
        "LABEL_STUDIO_USER_TOKEN": known["token"],
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(media),
    }
    if loopback_webhooks:
        variables["LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS"] = "false"
        variables["LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS"] = _BANNED
    return variables


def tether(command: list[str]) -> list[str]:
    """A command that runs another and ends it when its standard input ends: also when who started it is killed."""
    return ["/bin/sh", "-c", _TETHER, command[0], *command]


def secrets_path(folder: Path) -> Path:
    """The file of a folder's server that says who may log in: e-mail, password, token."""
    return folder / "secrets.json"


def read_secrets(folder: Path) -> dict[str, str]:
    """`email`, `password` and `token` (40 hex digits) of a folder's server, made at the first call.

    Only the owner can read their file. ConfigError: others can, or it is damaged.
    """
    path = secrets_path(folder)
    if not path.exists():
        made = {
            "email": "reviewer@localhost",
            "password": secrets.token_urlsafe(18),
            "token": secrets.token_hex(20),
        }
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(made, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"Others can read {path}. Take that away: chmod 600 {path}")
    try:
        known = json.loads(path.read_text())
        return {name: str(known[name]) for name in ("email", "password", "token")}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is damaged. Restore it; or remove it and {folder / 'data'}, and with them what was labelled there."
        ) from None


def _variables(data: Path) -> dict[str, str]:
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(("LC_", "OMP_", "OPENBLAS_")) or name.lower().endswith("_proxy")
    }
    return {**passed, **_SETTINGS, "LABEL_STUDIO_BASE_DATA_DIR": str(data)}


def _run(command: list[str], variables: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Run a step of the installation, and tell what it says, less the list of packages."""
    lines: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, umask=0o077,
    ) as process:  # fmt: skip
        for line in process.stderr or ():
            lines.append(line)
            if not line.startswith(" "):
                tell(line.rstrip())
    if process.returncode:
        raise ConfigError(
            f"Label Studio could not be installed: {' '.join(command[:3])} failed.\n{''.join(lines)}"
        )
