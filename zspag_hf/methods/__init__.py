"""Every method by name. A new one is one file here and one line in METHODS."""

from .amun import AMUN, AMUNAdvOnly
from .badt import BadTeacher
from .base import Method, Plan
from .boundary_expand import BoundaryExpand
from .boundary_shrink import BoundaryShrink
from .finetune import FineTune
from .fisher import Fisher
from .gkt import GKT
from .l1_sparse import L1Sparse
from .mixunlearn import MixUnlearn, MixupUnlearn
from .neggrad import NegGrad
from .random_labels import RandomLabels
from .retrain import Retrain
from .salun import SalUn
from .scrub import SCRUB
from .ssd import SSD
from .trw import TiltedReweighting
from .unsc import UNSC
from .zspag import ZSPAG

METHODS: dict[str, type[Method]] = {
    "zspag": ZSPAG,
    "amun": AMUN,
    "amun_advonly": AMUNAdvOnly,
    "badt": BadTeacher,
    "boundary_expand": BoundaryExpand,
    "boundary_shrink": BoundaryShrink,
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
    "ssd": SSD,
    "trw": TiltedReweighting,
    "unsc": UNSC,
}

__all__ = ["AMUN", "METHODS", "ZSPAG", "Method", "Plan", "RandomLabels"]
