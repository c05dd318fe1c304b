"""The settings as text: the listing of `fhir-imaging config`, and the reference page in `docs/`."""

import textwrap
from itertools import groupby

from fhir_server.config import CONFIG_VARIABLE, FILE_NAME, SETTINGS, Config, Setting

_GROUPS = {
    "data": "Data directory",
    "mongodb": "MongoDB",
    "engine": "Embedded engine",
    "web": "Web server",
    "fhir": "FHIR",
    "archive": "Archive",
    "limits": "Limits",
    "search": "Search for images",
    "access": "Access",
    "issuer": "Tokens of another authorization server",
    "audit": "Audit record",
    "smart": "Apps and people that sign in",
    "work": "Background work",
    "bulk": "Bulk data",
    "outbound": "Connections to others",
    "collect": "Collection",
    "subscriptions": "Subscriptions",
    "hardcopy": "Hard copy",
    "dimse": "DICOM without the web",
    "log": "Logs",
}

_INTRODUCTION = f"""\
# Settings

<!-- Written by `fhir-imaging config --reference`; a test compares. Change `SETTINGS` in fhir_server/config.py. -->

A setting comes from the first of these that names it:

1. the command line: `--set NAME=VALUE`, or an option of its own (`--host`, `--port`, `--data-dir`);
2. the environment: the variable in the table, or for a secret `<VARIABLE>_FILE` naming a file that holds it;
3. a TOML file: `--config FILE`, else `{CONFIG_VARIABLE}`, else `{FILE_NAME}` in the data directory;
4. the default.

`fhir-imaging config` prints every setting with its value and where that comes from; secrets are not shown.
A name that does not exist is an error in a file and on the command line. Sizes may be written `512 MiB` or `2 GiB`.

```toml
# {FILE_NAME}
[web]
base_url = "https://images.example.org"
workers = 4

[archive]
codec = "j2k"
```
"""


def listing(config: Config) -> str:
    """Return every setting with value, unit, source and help, for a terminal."""
    blocks = []
    for setting in SETTINGS:
        value = config.shown(setting.name) or "(not set)"
        unit = f" {setting.unit}" if setting.unit else ""
        text = textwrap.indent(textwrap.fill(setting.help, 96), "    ")
        blocks.append(f"{setting.name} = {value}{unit}    [{config.source(setting.name)}]\n{text}\n")
    return "".join(blocks)


def reference() -> str:
    """Return the reference page: one table for each group of settings."""
    parts = [_INTRODUCTION]
    for group, rows in groupby(SETTINGS, key=lambda setting: setting.name.partition(".")[0]):
        parts.append(
            f"\n## {_GROUPS[group]}\n\n| setting | variable | default | unit | meaning |\n|---|---|---|---|---|\n"
        )
        parts.extend(_row(setting) for setting in rows)
    return "".join(parts)


def _row(setting: Setting) -> str:
    variables = f"`{setting.variable}`" + (f", `{setting.alias}`" if setting.alias else "")
    default = setting.default.replace("|", "\\|") or "(none)"
    if setting.derive is None and setting.default:
        default = f"`{default}`"
    secret = " Secret." if setting.secret else ""
    return f"| `{setting.name}` | {variables} | {default} | {setting.unit} | {setting.help}{secret} |\n"
