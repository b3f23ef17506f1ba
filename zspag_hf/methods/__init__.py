"""Every method by name, and anybody's own by its import path. A new one is one file here and one line in METHODS."""

import importlib

from ..errors import UnlearningError
from .amun import AMUN, AMUNAdvOnly
from .badt import BadTeacher
from .base import Method
from .boundary_expand import BoundaryExpand
from .boundary_shrink import BoundaryShrink
from .delete import Delete
from .finetune import FineTune
from .fisher import Fisher
from .gkt import GKT
from .l1_sparse import L1Sparse
from .mixunlearn import MixUnlearn, MixupUnlearn
from .neggrad import NegGrad
from .options import Confined, Constrained, OptionalRetained, Proxies, Retained, Targets, Trained
from .plan import Plan
from .random_labels import RandomLabels
from .retrain import Retrain
from .run import Run
from .salun import SalUn
from .scrub import SCRUB
from .spotter import Spotter
from .ssd import SSD
from .trw import TiltedReweighting
from .unsc import UNSC
from .zspag import ZSPAG
from .zspag_paper import ZSPAGPaper

METHODS: dict[str, type[Method]] = {
    "zspag": ZSPAG,
    "zspag_paper": ZSPAGPaper,
    "amun": AMUN,
    "amun_advonly": AMUNAdvOnly,
    "badt": BadTeacher,
    "boundary_expand": BoundaryExpand,
    "boundary_shrink": BoundaryShrink,
    "delete": Delete,
    "finetune": FineTune,
    "fisher": Fisher,
    "gkt": GKT,
    "l1_sparse": L1Sparse,
    "mixunlearn": MixUnlearn,
    "mixup_unlearn": MixupUnlearn,
    "neggrad": NegGrad,
    "random_labels": RandomLabels,
    "retrain": Retrain,
    "salun": SalUn,
    "scrub": SCRUB,
    "spotter": Spotter,
    "ssd": SSD,
    "trw": TiltedReweighting,
    "unsc": UNSC,
}

__all__ = [
    "AMUN",
    "GKT",
    "METHODS",
    "SCRUB",
    "SSD",
    "UNSC",
    "ZSPAG",
    "AMUNAdvOnly",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "Confined",
    "Constrained",
    "Delete",
    "FineTune",
    "Fisher",
    "L1Sparse",
    "Method",
    "MixUnlearn",
    "MixupUnlearn",
    "NegGrad",
    "OptionalRetained",
    "Plan",
    "Proxies",
    "RandomLabels",
    "Retained",
    "Retrain",
    "Run",
    "SalUn",
    "Spotter",
    "Targets",
    "TiltedReweighting",
    "Trained",
    "ZSPAGPaper",
    "as_method",
    "find_method",
    "method_name",
]


def find_method(name: str) -> type[Method]:
    """The class of a method by its name in METHODS, or by ``package.module:Class``.

    Raises:
        UnlearningError: no such method, module or class, or one that is no :class:`Method`.
    """
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UnlearningError(
            f"method={name!r} is not one of {', '.join(map(repr, METHODS))}, nor package.module:Class."
        )
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnlearningError(
            f"method={name!r} cannot be imported ({error}): give package.module:Class of a module that Python finds."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UnlearningError(f"method={name!r} is no subclass of zspag_hf.methods.Method: derive it from that.")
    return kind


def as_method(method: str | Method) -> Method:
    """An instance, or one with the default options of a name or import path.

    Raises:
        UnlearningError: from :func:`find_method`, or neither of both.
    """
    if isinstance(method, str):
        return find_method(method)()
    if not isinstance(method, Method):
        raise UnlearningError(
            f"method must be a name, package.module:Class or an instance of a Method, not {method!r}: give one."
        )
    return method


def method_name(method: Method) -> str:
    """What :func:`find_method` finds it by."""
    kind = type(method)
    names = {known: name for name, known in METHODS.items()}
    return names.get(kind, f"{kind.__module__}:{kind.__qualname__}")
