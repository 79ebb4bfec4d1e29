"""Where the documentation of an estimator is, for the "?" of scikit-learn's HTML display."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata


@cache
def documentation_url() -> str | None:
    """Return the address of the documentation that the installed package names; None if it names none.

    The address is in one place, among the project's URLs in ``pyproject.toml``: a fork shows its own.
    """
    try:
        urls = metadata("lorakit").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a checkout
        return None
    pairs = (url.partition(",") for url in urls)
    return next((url.strip().rstrip("/") for label, _, url in pairs if label.strip().lower() == "documentation"), None)


def doc_link(cls: type) -> str:
    """Return the address of a public class's page; "" if there is none."""
    base = documentation_url()
    if base is None or cls.__module__.partition(".")[0] != "lorakit":
        return ""
    return f"{base}/generated/lorakit.{cls.__name__}.html"
