"""``lorakit env``: what a report of a bug needs."""

from __future__ import annotations

import click

from ._errors import debug_option
from ._options import json_option


@click.command()
@json_option
@debug_option
def env(as_json: bool) -> None:
    """Show the versions of lorakit and of what it uses, for reports of bugs.

    The output names no path, no user and no environment variable.
    """
    from .._environment import environment, show_versions
    from ._report import show_json

    if as_json:
        show_json(environment())
    else:
        show_versions()
