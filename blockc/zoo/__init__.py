"""The zoo: tensors and blobs by content digest, each stored once, verified when read."""

from __future__ import annotations

from blockc.zoo.collect import Collected, PackWork, collect, named
from blockc.zoo.reference import Reference, path_of, publish, refer, references, state_of
from blockc.zoo.store import StoredTensor, TensorBytes, Zoo
from blockc.zoo.survey import PlanShare, Survey, survey
from blockc.zoo.transfer import Imported, PlanFile, import_plan, import_zoos
from blockc.zoo.verification import Verified, verify_zoo

__all__ = [
    "Collected",
    "Imported",
    "PackWork",
    "PlanFile",
    "PlanShare",
    "Reference",
    "StoredTensor",
    "Survey",
    "TensorBytes",
    "Verified",
    "Zoo",
    "collect",
    "import_plan",
    "import_zoos",
    "named",
    "path_of",
    "publish",
    "refer",
    "references",
    "state_of",
    "survey",
    "verify_zoo",
]
