"""Secrets: named in a spec, looked up by the runtime, never written out.

In: a value. Out: the name of a secret, which is one that an environment variable can have. Invariant: no message
repeats what looks like a secret.
"""

# ruff: noqa: D102 - `expects` and `convert` are documented once, in ValueType
from __future__ import annotations

import re
from dataclasses import dataclass

from blockc.spec.context import Context
from blockc.spec.values import Secret, Value

_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abpr]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[a-z]+://[^/\s:@]+:[^/\s:@]+@"
)


def looks_secret(text: str) -> bool:
    """Return whether a string looks like a well-known kind of token or a URL with a password."""
    return _SECRETS.search(text) is not None


def report_secret(value: Value, context: Context) -> None:
    """Report BC602, without repeating the secret."""
    message = f"{context.where}: this looks like a secret in plain text"
    help_ = 'write `secret("NAME")`: the runtime looks it up, and it never enters a plan'
    context.diags.report("BC602", message, at=value.span, help=help_)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretName:
    """``secret("NAME")``. Becomes the name."""

    expects: str = '`secret("NAME")`'

    def convert(self, value: Value, context: Context) -> str | None:
        if isinstance(value.data, Secret):
            return self._named(value.data.name, value, context)
        if isinstance(value.data, str):
            report_secret(value, context)
            return None
        context.wrong_type(self.expects, value)
        return None

    def _named(self, name: str, value: Value, context: Context) -> str | None:
        if looks_secret(name):
            report_secret(value, context)
        elif not (name.isascii() and name.isidentifier()):
            message = "the name of a secret has letters, digits and `_`, as one of an environment variable"
            context.out_of_range(message, value, help_=f"write {self.expects}")
        else:
            return name
        return None
