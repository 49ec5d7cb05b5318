"""Fine-tunes added to a spec from outside of it, each with the app that it answers.

In: a deployment, and texts such as ``acme/poems=./adapters/poems`` or ``acme/poems:tiny=./adapters/poems``. Out: the
deployment with them, and its digest. Invariant: nothing that the spec declares changes; what does not fit it is a
diagnostic that names the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.spec.deployment import App, Deployment, FineTune, LocalSource, Slo, Tenant, Traffic
from blockc.spec.digest import deployment_digest
from blockc.spec.suggest import did_you_mean

FILE = "--add"  # what stands for a file in the places of diagnostics
_TEXT = re.compile(r"(?P<tenant>[\w.-]+)/(?P<app>[\w.-]+)(?::(?P<parent>[\w.-]+))?=(?P<folder>.+)")
_FORM = "write `tenant/app=FOLDER`, or `tenant/app:PARENT=FOLDER` with the base or fine-tune that it was made of"


def with_additions(deployment: Deployment, texts: Sequence[str], *, diags: Diagnostics) -> Deployment:
    """Add all of them. Problems go to ``diags`` (BC101, BC106, BC109), and what has some is left out."""
    for line, text in enumerate(texts, 1):
        at = Span(file=FILE, start_line=line, start_column=1, end_line=line, end_column=len(text) + 1)
        deployment = _added(deployment, text, at, diags) or deployment
    return deployment_digest(deployment) if texts else deployment


def _added(deployment: Deployment, text: str, at: Span, diags: Diagnostics) -> Deployment | None:
    found = _TEXT.fullmatch(text)
    if found is None:
        diags.report("BC109", f"`{text[:200]}` adds nothing", at=at, help=_FORM)
        return None
    tenant, name, parent = found["tenant"], found["app"], found["parent"] or _only_base(deployment)
    models = {*deployment.bases, *deployment.fine_tunes}
    address = f"{tenant}/{name}"
    if tenant not in deployment.tenants:
        names = sorted(deployment.tenants)
        diags.report("BC101", f"there is no tenant `{tenant}`", at=at, help=did_you_mean(tenant, names))
    elif address in {app.address for app in deployment.apps}:
        diags.report("BC106", f"there is an app `{address}` already", at=at, help="give it another name")
    elif parent is None:
        diags.report("BC109", f"`{address}` could be a fine-tune of several bases", at=at, help=_FORM)
    elif parent not in models:
        diags.report(
            "BC101", f"there is no base or fine-tune `{parent}`", at=at, help=did_you_mean(parent, sorted(models))
        )
    else:
        # No name in a spec has a slash, so that it is nobody else's.
        source = LocalSource(path=Path(found["folder"]).absolute(), written=found["folder"])
        tune = FineTune(name=address, parent=parent, source=source, kind=None, span=at, source_span=at)
        app = App(
            tenant=tenant, name=name, model=address, traffic=Traffic(), slo=Slo(), span=at, model_span=at
        )  # fmt: skip
        return replace(
            deployment,
            fine_tunes={**deployment.fine_tunes, address: tune},
            tenants={**deployment.tenants, tenant: _with_app(deployment.tenants[tenant], app)},
        )
    return None


def _with_app(tenant: Tenant, app: App) -> Tenant:
    return replace(tenant, apps=(*tenant.apps, app))


def _only_base(deployment: Deployment) -> str | None:
    return next(iter(deployment.bases)) if len(deployment.bases) == 1 else None
