"""Upper bounds that no policy can pass, and the success at them."""

from .bound import Certificate, certificate, certificate_of
from .confidence import CONFIDENCE
from .limit import finite_sample_limit, reward_bound_of
from .pooled import Pooled, certificate_by_start, pooled_certificate
from .success import SuccessRate

__all__ = [
    "CONFIDENCE",
    "Certificate",
    "Pooled",
    "SuccessRate",
    "certificate",
    "certificate_by_start",
    "certificate_of",
    "finite_sample_limit",
    "pooled_certificate",
    "reward_bound_of",
]
