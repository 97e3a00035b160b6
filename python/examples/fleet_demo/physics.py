"""The robots' worlds: gymnasium environments, stepped with a continuous force, and their dynamics near upright.

State of every robot: (position m, speed m/s, tilt rad, tilt rate rad/s), tilt 0 = upright, float64 of shape (4,).
"""

from __future__ import annotations

import os
from typing import Protocol

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are drawn in memory, no screen is needed
os.environ.setdefault("MUJOCO_GL", "egl")  # likewise; Mesa draws in software where there is no GPU

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP_MS = 20.0
"""Control period of both robots (50 Hz): one step of physics."""
PLAN_STEPS = 25
"""How many periods ahead the controller plans (0.5 s)."""


class Robot(Protocol):
    """One body in its own world. Not thread-safe."""

    max_force: float
    """Of the actuator, in the environment's own unit (N for the cart-pole)."""

    def reset(self, seed: int) -> None:
        """Puts the robot upright, a little off balance."""

    def state(self) -> Array:
        """The state, shape (4,)."""

    def set_state(self, state: Array) -> None:
        """Puts the robot into a state."""

    def step(self, force: float) -> bool:
        """Lets the force act for STEP_MS; whether the robot fell (or ran off its track)."""

    def frame(self) -> NDArray[np.uint8]:
        """What a camera beside the track sees, shape (height, width, 3)."""

    def close(self) -> None:
        """Frees the world."""


class CartPole:
    """gymnasium's CartPole-v1. It knows two actions, full force left and right; its equations of motion take any force, so the
    motor's strength is set before each step and the action only gives the sign."""

    max_force = 10.0
    pole_rgb = (202, 152, 101)
    camera_pitch_rad = 0.0

    def __init__(self) -> None:
        self._env = gym.make("CartPole-v1", render_mode="rgb_array").unwrapped
        assert abs(self._env.tau * 1000 - STEP_MS) < 1e-9

    def reset(self, seed: int) -> None:
        self._env.reset(seed=seed)

    def state(self) -> Array:
        return np.array(self._env.state, dtype=np.float64)

    def set_state(self, state: Array) -> None:
        self._env.state = np.array(state, dtype=np.float64)

    def step(self, force: float) -> bool:
        self._env.force_mag = min(abs(force), self.max_force)
        _, _, fell, _, _ = self._env.step(int(force > 0))
        return bool(fell)

    def frame(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._env.render()[::4, ::4])  # 400 x 600 -> 100 x 150

    def close(self) -> None:
        self._env.close()


class InvertedPendulum:
    """gymnasium's MuJoCo InvertedPendulum-v5, at one physics step per action (50 Hz)."""

    max_force = 3.0
    pole_rgb = (0, 90, 90)
    camera_pitch_rad = np.pi / 4  # it looks down on the track

    def __init__(self) -> None:
        made = gym.make("InvertedPendulum-v5", render_mode="rgb_array", width=120, height=120, frame_skip=1)
        self._env = made.unwrapped
        assert abs(self._env.dt * 1000 - STEP_MS) < 1e-9

    def reset(self, seed: int) -> None:
        self._env.reset(seed=seed)

    def state(self) -> Array:
        (position, tilt), (speed, tilt_rate) = self._env.data.qpos, self._env.data.qvel
        return np.array([position, speed, tilt, tilt_rate])

    def set_state(self, state: Array) -> None:
        self._env.set_state(state[[0, 2]], state[[1, 3]])

    def step(self, force: float) -> bool:
        action = np.clip([force], -self.max_force, self.max_force)
        _, _, fell, _, _ = self._env.step(action)
        return bool(fell)

    def frame(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._env.render())

    def close(self) -> None:
        self._env.close()


ROBOTS: dict[str, type[CartPole] | type[InvertedPendulum]] = {
    "cart-pole": CartPole,
    "inverted-pendulum": InvertedPendulum,
}


def linearise(robot: Robot) -> tuple[Array, Array]:
    """A (4, 4) and B (4, 1) of state' = A state + B force over one step around upright, by central differences of the
    environment's own physics."""

    def after(state: Array, force: float) -> Array:
        robot.set_state(state)
        robot.step(force)
        return robot.state()

    upright, h = np.zeros(4), 1e-4
    a = np.stack([(after(d, 0.0) - after(-d, 0.0)) / (2 * h) for d in np.eye(4) * h], axis=1)
    b = (after(upright, h) - after(upright, -h)) / (2 * h)
    return a, b[:, None]
