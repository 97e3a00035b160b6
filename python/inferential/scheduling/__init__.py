from inferential.scheduling import deadline as _deadline  # noqa: F401 - they register themselves
from inferential.scheduling import round_robin as _round_robin  # noqa: F401
from inferential.scheduling.base import Order, Scheduler, register_scheduler
from inferential.scheduling.order import Policy, Weights, register_policy

__all__ = ["Order", "Policy", "Scheduler", "Weights", "register_policy", "register_scheduler"]
