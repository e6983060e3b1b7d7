"""PDE: fine-tuning as supervised regression (Mou 2025).

The optimal value V solves a Hamilton-Jacobi-Bellman equation. Cole-Hopf, ``f = exp(V / beta)``,
makes it linear; in continuous time, with Lambda the square of the diffusion,

    d_t f + Tr(Lambda D^2 f) / 2 + b . grad f + (r / beta) f = 0,      f_T = exp(y / beta).

Tested with functions g along paths of the process it reads ``B(f, g) = l(g)``,

    B(f, g) = int E[ -(d_t + L + r / beta) f  g ] dt + E[ f_T g_T ],
    l(g) = E[ exp(y / beta) g_T ],

and B is coercive in a Sobolev norm: regression that solves the empirical variational inequality

    find f in F with  B_n(f, g - f) >= l_n(g - f)  for all g in F

controls the gradient of f, hence the control ``a = J_z^T grad log f``. ``PDE.iterate`` and
``PDE.fit`` go through these steps in this order; how the inequality is solved is ``Regression``'s.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from ...envs.env import as_env, problem_of
from ...envs.problem import Policy, Trajectories
from ..base import ProblemAgent
from ..checks import check_fit, check_rounds
from ..control import ControlPolicy
from ..networks import NetworkValue
from .choosing.candidates import network_for
from .choosing.contest import Contest
from .classes.linear import LinearValue
from .collecting.paths import Watched, is_controlled, pushed
from .image_policies import CnnPolicy, StateCnnPolicy
from .learned_rewards import LearnedRewards, imagine
from .learned_transition import ModelPolicy
from .norms import known_error
from .policies import (
    FourierPolicy,
    KernelPolicy,
    MlpPolicy,
    NoisePolicy,
    PolynomialPolicy,
    RadialPolicy,
    ValueGradientPolicy,
)
from .regression import Regression
from .replay import Data, Parts, Replay
from .settings import GROUP_OF, Collection, Fitting, Flat, Selection, Targets, settled

SelfPDE = TypeVar("SelfPDE", bound="PDE")


class PDE(Regression):
    """Regression instead of reinforcement learning.

    Args:
        policy: the function class of ``log f``; ``"auto"`` tries those that suit the problem on its
            own paths and goes on with the best (see ``choosing``), or takes the network that suits
            the problem where paths are not its own (``adaptive=False``, ``imagined``).
            ``"MlpPolicy"`` (networks),
            ``"CnnPolicy"``, ``"StateCnnPolicy"`` (convolutional; see ``image_policies``),
            ``"PolynomialPolicy"``, ``"FourierPolicy"``, ``"KernelPolicy"`` (Nystrom) or
            ``"RadialPolicy"`` (positive radial bases), whose gradient through the transition is the
            control; where it can't be differentiated ``"ModelPolicy"`` (networks, one of them a
            learned transition) or ``"NoisePolicy"`` (a regression of the noise); or a
            ``ValuePolicy`` class.
        env: an environment, a vector environment, a registered id, or a bare Problem. The reward is
            a black box.
        learning_rate: of AdamW; a number or an SB3 schedule. Absent: the policy's own
            (``MlpPolicy``: 6e-3, but 2e-3 on denoisers; others: 2e-3).
        n_uncontrolled: paths gathered without control in the first round.
        n_trajectories: paths gathered in each later round.
        adaptive: gather later rounds under the current policy; False never applies a control
            (off-policy).
        gradient_steps: of the network, in each round.
        collection: paths beside the policy's.
        targets: what log f is regressed on.
        fitting: how networks follow their equation.
        selection: how linear classes are chosen.
        kwargs: every setting of these four by its own name (``exploration=0.5``, ``draws=8``), and
            stable-baselines3's arguments (``seed``, ``device``, ``verbose``, ...).

    Raises:
        ValueError: an unknown argument, or one that is not allowed.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "StateCnnPolicy": StateCnnPolicy,
        "PolynomialPolicy": PolynomialPolicy,
        "FourierPolicy": FourierPolicy,
        "KernelPolicy": KernelPolicy,
        "RadialPolicy": RadialPolicy,
        "NoisePolicy": NoisePolicy,
        "ModelPolicy": ModelPolicy,
    }
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("n_uncontrolled", "adaptive", "gradient_steps"),
        *GROUP_OF,
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "auto",
        env: Any = None,
        learning_rate: Any = None,
        n_uncontrolled: int = 100,
        n_trajectories: int = 50,
        adaptive: bool = True,
        *,
        gradient_steps: int = 100,
        collection: Collection | None = None,
        targets: Targets | None = None,
        fitting: Fitting | None = None,
        selection: Selection | None = None,
        **kwargs: Any,
    ) -> None:
        check_rounds(n_uncontrolled, gradient_steps, adaptive, kwargs.get("policy_kwargs"))
        self.n_uncontrolled, self.adaptive = int(n_uncontrolled), bool(adaptive)
        self.gradient_steps = int(gradient_steps)
        groups = dict(collection=collection, targets=targets, fitting=fitting, selection=selection)
        vars(self).update(settled(groups, kwargs))
        if self.collection.exploration and not adaptive:
            raise ValueError(
                "exploration must be 0 where adaptive is False (no control is applied); got"
                f" {self.collection.exploration!r}"
            )
        self.rounds, self.choice, self.contest = [], "", None
        if policy == "auto":
            env = as_env(env)
            policy = network_for(problem_of(env))
            if self.adaptive and not self.collection.imagined:
                self.contest = Contest()
        self._given = dict(kwargs.get("policy_kwargs") or {})
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    @classmethod
    def arguments(cls) -> list[str]:
        """See ProblemAgent; the flat names of the settings among them."""
        return sorted({*super().arguments(), *GROUP_OF})

    # --- the algorithm

    def iterate(self) -> None:
        """One round: observe, transform, and solve the variational inequality on all data so far.

        In the first round, and in all if not ``adaptive``, nothing but uncontrolled paths: Mou's
        off-policy observations. Paths of the present policy come with their Girsanov weights, which
        leave the equation unbiased.
        """
        if self.contest is not None and self.contest.open:
            self.contest.round(self)
            return
        # 1. Observe independent paths; their rewards are a black box.
        first = self.reward_queries == 0
        share = self.collection.controlled if self.adaptive else 0.0
        steered = not first and is_controlled(self.rounds, share, self.policy.dear)
        control = self.policy.control if steered else None
        n = self.n_uncontrolled if first else self.n_trajectories
        n = n if self.contest is None else self.contest.paths(self, n)
        # 2. Cole-Hopf: observations (t, x, t', x', reward in between) in units of beta.
        told = self._last_return
        paths, fresh = self.observe(control, n, self.collection.exploration)
        if steered or first or not self.adaptive:
            clipped = (paths.controls.abs() >= self.policy.action_bound).float().mean()
            self.logger.record("train/clipped_share", float(clipped))
        else:
            self._last_return = told  # free paths say nothing of the policy
        if self.contest is not None and steered:
            self.contest.watch(self, paths, fresh)

        self.absorb(fresh, control)

    def absorb(self, fresh: Replay, control: Policy | None, rounds: int = 1) -> None:
        """Learn from the paths of so many rounds, and from all before; ``control`` made them."""
        anew = self._n_updates == 0
        fresh = self._branched(fresh)
        self.rounds.append(fresh)

        # 3. The convex set: f in units of its mean, within the bounds that bounded rewards give.
        self._begin(fresh, anew)

        # 4. The variational inequality over it: B_n(f, g - f) >= l_n(g - f). The policy is the
        #    gradient of its solution and needs no step of its own.
        if isinstance(self.policy.value, LinearValue):
            self._solve_rounds(cold=anew)
        else:
            every = Replay.joined(self.rounds)
            self._prepare(every, anew)
            if self.collection.imagined:
                every = self._imagined(every, fresh, control)
            self._regress(every, rounds * self.gradient_steps)

        self._record_error(fresh)

    def fit(
        self: SelfPDE, data: Data, gradient_steps: int = 2000, progress_bar: bool = False
    ) -> SelfPDE:
        """Learn from recorded paths alone: no step is taken in the environment.

        The same steps as a round's, on observations at random times too.

        Args:
            data: whole trajectories, a ``Recording`` (of paths seen at random times, say), the name
                of a file that ``Recording.save`` wrote, or anything that yields these in parts
                whenever it is iterated over (``RecordedPaths``, ``SimulatedPaths``, a list): linear
                classes never hold more than one part. Or a Minari dataset (``agents.datasets``).
            gradient_steps: of networks, annealed over this call.
            progress_bar: show one.

        Raises:
            ValueError: wrong shapes, NaN or infinite numbers, a corrupt file, or no path that was
                seen at its end.
        """
        check_fit(gradient_steps, progress_bar)
        imagined = self.collection.imagined
        if imagined:
            raise ValueError(f"imagined must be 0 for fit, which simulates nothing; got {imagined}")
        # 1. and 2. Observations, as they were recorded
        parts = Parts(data, self.policy.problem, self.device, lambda: self.policy.value)
        first = next(iter(parts), None)
        if first is None or not bool(first.seen.any()):
            raise ValueError(
                "the first part of data must hold a path that was seen at its end: without a"
                " terminal reward nothing is learnt"
            )
        self._set_up_logger()
        self.rounds = []
        # 3. The convex set
        linear, anew = isinstance(self.policy.value, LinearValue), self._n_updates == 0
        self._begin(first, anew=linear or anew)
        # 4. The variational inequality over it
        if linear:
            self._solve(parts, cold=True)
        else:
            every = self._branched(Replay.joined(list(parts)))
            self.policy.value.bounds.copy_(every.bounds(self.policy.value.offset))
            self.learner.load_state_dict(self._trained().state_dict())
            self._prepare(every, anew)
            self._anneal(every, gradient_steps, progress_bar)
        self._record_error(first)
        self.reward_queries += parts.terminal_rewards
        return self

    # --- what surrounds it

    def learn(self: SelfPDE, *args: Any, **kwargs: Any) -> SelfPDE:
        """See ProblemAgent."""
        super().learn(*args, **kwargs)
        if self.contest is not None:
            self.contest.close(self)
        return self

    def _setup_model(self) -> None:
        if self.learning_rate is None:
            policy: Any = self.policy_class
            self.learning_rate = policy.usual_learning_rate(problem_of(self.env))
        super()._setup_model()
        imagined = self.collection.imagined
        if imagined:
            known = isinstance(self.policy, ValueGradientPolicy) and not self.policy.needs_noise
            if not (known and isinstance(self.policy.value, NetworkValue)):
                name = type(self.policy).__name__
                raise ValueError(
                    f"imagined must be 0 for {name}: it is for networks that know the transition;"
                    f" got {imagined}"
                )
            rewards = LearnedRewards(self.policy.n_inputs, self.problem.horizon)
            self.rewards = rewards.to(self.device)
        self._start_learner()

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        if not self.collection.imagined:
            return super().networks()
        own = {"rewards": self.rewards, "rewards_optimizer": self.rewards.optimizer}
        return {**super().networks(), **own}

    def training_state(self) -> dict[str, Any]:
        """See SavedAgent; of a contest everyone in it."""
        contest = {} if self.contest is None else {"contest": self.contest.training_state(self)}
        return {**super().training_state(), **contest}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See SavedAgent; first it becomes of the class that had won."""
        if self.contest is not None:
            self.contest.set_training_state(self, state["contest"])
        super().set_training_state(state)

    def forget(self) -> None:
        """See ProblemAgent."""
        self.rounds = []
        self.contest = None  # its figures are another problem's

    def _imagined(self, every: Replay, fresh: Replay, control: Policy | None) -> Replay:
        """The newest round, and paths of its control with rewards learned from all rounds.

        Of the first, the round alone.
        """
        first = len(self.rounds) == 1
        steps = _REWARD_STEPS * (3 if first else 1)
        running, terminal = self.rewards.regress(every, steps, self.generator)
        self.logger.record("train/running_reward_loss", running)
        self.logger.record("train/terminal_reward_loss", terminal)
        if first:
            return fresh
        n = self.collection.imagined
        made = imagine(self.problem, self.rewards, control, n, self.generator)
        return Replay.joined([fresh, made])

    def observe(
        self, control: Policy | None, n: int, spread: float = 0.0
    ) -> tuple[Trajectories, Replay]:
        """``n`` paths under ``control``, pushed by ``spread``, and the same as regression data."""
        if spread:
            bound = self.policy.action_bound
            control = pushed(control, n, spread, self.problem, bound, self.generator)
        watched = Watched(self.policy.problem, control)
        paths = self.collect(watched, n)
        return paths, watched.replay(paths)

    def _anneal(self, data: Replay, gradient_steps: int, progress_bar: bool) -> None:
        """``gradient_steps`` of networks, at a rate that falls over them."""
        from tqdm.auto import tqdm

        chunk = max(1, gradient_steps // 100)
        bar = tqdm(total=gradient_steps, disable=not progress_bar, desc="fit")
        for done in range(0, gradient_steps, chunk):
            self._current_progress_remaining = 1 - done / gradient_steps
            self._regress(data, min(chunk, gradient_steps - done))
            bar.update(chunk)
        bar.close()

    def _record_error(self, data: Replay) -> None:
        """The Sobolev error on the newest data, where the optimum is known and a log is kept."""
        known = known_error(self.policy.problem, data, self.policy.control)
        if known is not None and self.logger.output_formats:
            self.logger.record("pde/sobolev_error", known())


for _name in GROUP_OF:
    setattr(PDE, _name, Flat(_name))

#: Gradient steps of the learned rewards in a round; three times as many in the first.
_REWARD_STEPS = 150
