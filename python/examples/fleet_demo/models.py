"""The two models, deployed on Ray Serve: one balances the robots, one watches them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from physics import PLAN_STEPS, ROBOTS, linearise
from ray import serve

from inferential.serving import servable

Array = NDArray[np.float64]


def lqr_gain(a: Array, b: Array, q: Array, r: Array) -> Array:
    """The gain K of force = -K state that minimises the sum of state'Q state + force'R force: the fixed point of the discrete
    Riccati equation, found by iterating it."""
    p = q
    for _ in range(10_000):
        k = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        following = q + a.T @ p @ (a - b @ k)
        if np.allclose(following, p, rtol=1e-10, atol=1e-10):
            return k
        p = following
    raise ValueError("the Riccati iteration does not settle: this robot can't be balanced with this force")


class Regulator:
    """A linear-quadratic regulator that plans ahead, so that a robot whose link stalls has something sensible to do.

    In: `state` (4,) and `force` (1,), what the motor does during the period under way. Out: `forces` (PLAN_STEPS,), one for
    each period after that one. The first is what matters; the rest is played only while no newer plan arrives.
    """

    def __init__(self, robot: str) -> None:
        body = ROBOTS[robot]()
        a, b = linearise(body)
        body.close()
        # The force under way is a fifth state: that is how the delay of one period enters the design.
        a5 = np.block([[a, b], [np.zeros((1, 5))]])
        b5 = np.vstack([np.zeros((4, 1)), [[1.0]]])
        # Bryson's rule: each weight is the inverse square of what is still acceptable (m, m/s, rad, rad/s).
        cost = np.diag([1 / limit**2 for limit in (0.5, 1.0, 0.1, 1.0)] + [0.0])
        gain = lqr_gain(a5, b5, cost, np.array([[1 / body.max_force**2]]))
        # Row j is the force j periods on, as a linear function of (state, force): -K (A - B K)^j.
        rows, closed_loop = [-gain], a5 - b5 @ gain
        for _ in range(PLAN_STEPS - 1):
            rows.append(rows[-1] @ closed_loop)
        self._plan = np.concatenate(rows)
        self._max_force = body.max_force

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        forces = self._plan @ np.concatenate([obs["state"], obs["force"]])
        return {"forces": np.clip(forces, -self._max_force, self._max_force)}


@serve.deployment(num_replicas=2, max_ongoing_requests=8, ray_actor_options={"num_cpus": 0.2})
@servable
class Balancer(Regulator):
    """The regulator, as the demo deploys it."""


@serve.deployment(num_replicas=1, max_ongoing_requests=2, ray_actor_options={"num_cpus": 0.2})
@servable
class Watcher:
    """Measures a robot's tilt in a camera frame: the slope of the line through the pole's pixels.

    In: `frame` (height, width, 3) uint8. Out: `tilt` (1,) rad, NaN where no pole is seen.
    """

    def __init__(self, robot: str) -> None:
        colour = np.array(ROBOTS[robot].pole_rgb, dtype=np.float64)
        self._colour = colour / np.linalg.norm(colour)
        self._foreshortening = np.cos(ROBOTS[robot].camera_pitch_rad)

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        frame = obs["frame"].astype(np.float64)
        brightness = np.linalg.norm(frame, axis=2)
        pole = (brightness > 30) & (frame @ self._colour > 0.995 * brightness)
        down, right = np.nonzero(pole)
        if len(down) < 20:
            return {"tilt": np.array([np.nan])}
        (_, covariance), (_, height_variance) = np.cov(right, -down)
        return {"tilt": np.array([np.arctan(self._foreshortening * covariance / height_variance)])}
