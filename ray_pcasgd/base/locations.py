"""Keys in locations such as ``s3://ID:KEY@bucket``: none is taken, and none is shown.

A location is written into settings, tables and messages, from where a key would reach everybody who reads them. So a
location with a key is refused before anything is written; and what is said to people is masked besides, since a key
may stand in the words of a library, or in a folder that is older or somebody else's.
"""

import re
from pathlib import PurePath
from urllib.parse import unquote

from ray_pcasgd.base.errors import SettingsError

_MASK = "***"
_LOCATION = re.compile(
    r"(?<![A-Za-z0-9+.-])"
    # As a path of this machine, a location has lost a slash.
    r"([A-Za-z][A-Za-z0-9+.-]*://|(?:s3|gs|gcs|abfss?|az|hdfs|hf|https?):/)"
    r"([^\s'\"<>]+)"
)
_WITHOUT_USERS = ("s3", "http", "https")
"""Schemes in which whatever stands before an @ lets its reader in; elsewhere it may be a name alone."""
_SECRET = ("key", "secret", "token", "password", "passwd", "pwd", "sig", "signature", "credential", "credentials")
"""Ends of the names of options that hold keys."""
_AZURE = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
_IN_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": _AZURE,
    "abfss": _AZURE,
}


def without_keys(text: str) -> str:
    """Return a text in which the keys of all locations are masked.

    >>> without_keys("s3://ID:a/b@bucket/runs: no such bucket"), without_keys("https://host/a.parquet?token=x&page=2")
    ('s3://***@bucket/runs: no such bucket', 'https://host/a.parquet?token=***&page=2')
    >>> without_keys("abfs://container@account.dfs.core.windows.net, s3://bucket?endpoint_override=host:80")
    'abfs://container@account.dfs.core.windows.net, s3://bucket?endpoint_override=host:80'
    """
    return _LOCATION.sub(lambda found: found[1] + _masked(found[1].partition(":")[0], found[2]), text)


def refuse_key(location: str | PurePath, subject: str = "") -> None:
    """See to it that a location holds no key; ``subject`` is the setting that it is given by.

    Raises:
        SettingsError: it does.

    """
    shown = without_keys(str(location))
    if shown == str(location):
        return
    told = f"{subject} = {shown!r}" if subject else shown
    names = _IN_ENVIRONMENT.get(shown.partition(":")[0].lower())
    instead = f"set {names} in the environment instead" if names else "keys belong into the environment"
    raise SettingsError(f"{told}: holds a key, which would stand in files and messages; {instead}")


def _masked(scheme: str, rest: str) -> str:
    """Return what stands behind a location's scheme, without keys."""
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = host.rpartition("@")
    port = host.rpartition(":")[2] if ":" in host and not at and not host.startswith("[") else ""
    if port and not port.isdecimal():
        # No port but a key, which has some of these characters itself.
        rest = f"{_MASK}@{rest.rpartition('@')[2]}" if "@" in rest else _MASK + rest.removeprefix(host)
    elif at and (scheme.lower() in _WITHOUT_USERS or ":" in unquote(user)):
        rest = f"{_MASK}@{rest.removeprefix(user + at)}"
    path, question, options = rest.partition("?")
    return path + question + "&".join(map(_masked_option, options.split("&")))


def _masked_option(option: str) -> str:
    name, equals, value = option.partition("=")
    is_key = unquote(name).lower().endswith(_SECRET) or re.search(":.*@", unquote(value))
    return f"{name}={_MASK}" if is_key and value and value != _MASK else name + equals + value
