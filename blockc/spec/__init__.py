"""The language: from the text of a spec to its meaning.

:func:`load` reads a ``*.blk`` file and everything it imports and returns a :class:`LoadResult`:
the :class:`Deployment`, or None and the errors; all warnings; and the texts, for rendering::

    result = load(Path("fleet.blk"), variables={"zoo": "./zoo"}, environ=os.environ)
    deployment = result.require()  # raises DiagnosticError with everything that is wrong

The way of a spec, one module each: ``source`` (bytes to text), ``scan`` and ``parser`` (text to
``syntax``, by the grammar of ``blockc_grammar``), ``expand`` and ``evaluate`` (``let``, ``var``,
``for``, ``import`` to plain blocks), ``validate`` (against ``schema``), ``resolve`` (to
``deployment``), ``digest``, ``lint``. ``weights`` looks at the files of local models, without
reading tensors.
"""

from __future__ import annotations

from blockc.spec.deployment import (
    App,
    Base,
    Cluster,
    Deployment,
    Device,
    Dtype,
    Expect,
    FineTune,
    FineTuneKind,
    HubSource,
    Isolation,
    LocalSource,
    Policy,
    Quota,
    Slo,
    Source,
    Tenant,
    Traffic,
)
from blockc.spec.load import LoadResult, load

__all__ = [
    "App",
    "Base",
    "Cluster",
    "Deployment",
    "Device",
    "Dtype",
    "Expect",
    "FineTune",
    "FineTuneKind",
    "HubSource",
    "Isolation",
    "LoadResult",
    "LocalSource",
    "Policy",
    "Quota",
    "Slo",
    "Source",
    "Tenant",
    "Traffic",
    "load",
]
