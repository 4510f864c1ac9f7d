"""Any sampler of Optuna as a searcher (Akiba et al., KDD 2019), through its ask-and-tell interface."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import Visited, up_to
from searchers.study import Trial, score
from supernet.checked import Seed, arguments_explained, checked_arguments
from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, Choice, SearchSpace, Value

if TYPE_CHECKING:
    import optuna  # type: ignore[import-not-found]  # an extra


SAMPLER_TRIES = 20
"""Suggestions that may be known or outside the limits before a random new network takes their place. Each costs a step
of the sampler, and a converged one suggests the same network again and again."""


class OptunaSearcher:
    """Proposes what an Optuna sampler suggests, each network once and within the limits.

    A decision is a categorical parameter of the same name, an ordered one an integer parameter (the number of its
    option), and a conditional one is suggested only where it is active. If the sampler suggests a known network, it
    gets the known score at once. A suggestion outside the limits is reported to it as pruned; samplers that learn from
    pruned trials (TPE) take these for the worst. After `SAMPLER_TRIES` such suggestions, a random new network within
    the limits is proposed, and its score is added to the sampler's history. If there is none, fewer are returned than
    asked for, and finally none.

    It needs the package `optuna` (the extra `supernet[optuna]`). Optuna's samplers look through the whole history at
    each proposal: with ten thousand trials, TPE takes tenths of a second for one.

    Args:
        space: the space to search.
        seed: the seed of the sampler and of the random draws.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits.
        sampler: the name of a class in `optuna.samplers`, or a function that makes a sampler from `seed` and `options`.
        options: further arguments of the sampler, e.g. `{"n_startup_trials": 20}`.

    Raises:
        InputError: Optuna is not installed, has no sampler of that name, or the sampler refuses the options.
    """

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        sampler: str | Callable[..., "optuna.samplers.BaseSampler"] = "TPESampler",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.sampler = sampler
        self.options = options
        self._optuna = _imported()
        self._rng = generator("optuna", seed)
        self._visited = Visited(space, feasible)
        self._known: dict[str, float] = {}  # scores by network
        self._asked: dict[str, optuna.trial.Trial] = {}  # suggestions that are not scored yet, by network
        self._study = self._create_study()

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._proposal, lambda: self._visited.sample(self._rng))

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Reports the trials to the sampler; those that it did not suggest are added to its study."""
        states = self._optuna.trial.TrialState
        self._visited.tell(trials)
        for trial in trials:
            value = None if trial.failed else score(trial, self.metric)
            state = states.COMPLETE if value is not None else states.FAIL
            asked = self._asked.pop(trial.key, None)
            if asked is not None:
                self._study.tell(asked, value, state=state)
            elif self.feasible is None or self.feasible(trial.arch):
                params, distributions = self._described(trial.arch)
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        params=params, distributions=distributions, value=value, state=state
                    )
                )
            if value is not None:
                self._known[trial.key] = value

    def _proposal(self) -> Arch | None:
        """The sampler's next network that is new and within the limits; None after `SAMPLER_TRIES` others."""
        states = self._optuna.trial.TrialState
        for _ in range(SAMPLER_TRIES):
            trial = self._study.ask()
            arch = self._suggested(trial)
            key = self.space.normal_form(arch).key
            if self.feasible is not None and not self.feasible(arch):
                self._study.tell(trial, state=states.PRUNED)
            elif key in self._known:
                self._study.tell(trial, self._known[key])
            elif arch in self._visited:  # it failed, or is in this batch already: there is nothing to learn
                self._study.tell(trial, state=states.FAIL)
            else:
                self._visited.add(arch)
                self._asked[key] = trial
                return arch
        return None

    def _suggested(self, trial: "optuna.trial.Trial") -> Arch:
        """The architecture that an Optuna trial suggests; inactive decisions are not suggested."""

        def pick(choice: Choice) -> Value:
            if choice.ordered:
                number: int = trial.suggest_int(choice.name, 0, len(choice.options) - 1)
                return choice.options[number]
            return cast(Value, trial.suggest_categorical(choice.name, tuple(choice.options)))

        values: dict[str, Value] = {}
        inactive: set[str] = set()
        for choice in self.space.choices:
            off = choice.off(values, inactive)
            values[choice.name] = choice.options[0] if off else pick(choice)
            inactive |= {choice.name} if off else set()
        return Arch(values)

    def _described(self, arch: Arch) -> tuple[dict[str, Any], dict[str, "optuna.distributions.BaseDistribution"]]:
        """Returns parameters and distributions of an architecture as if the sampler had suggested it."""
        params: dict[str, Any] = {}
        distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        kinds = self._optuna.distributions
        for choice in self.space.active(arch):
            options, value = tuple(choice.options), arch[choice.name]
            params[choice.name] = choice.index(value) if choice.ordered else value
            distributions[choice.name] = (
                kinds.IntDistribution(0, len(options) - 1) if choice.ordered else kinds.CategoricalDistribution(options)
            )
        return params, distributions

    def _create_study(self) -> "optuna.study.Study":
        make = self.sampler
        if isinstance(make, str):
            bases = ("BaseSampler", "BaseGASampler")
            names = [name for name in dir(self._optuna.samplers) if name.endswith("Sampler") and name not in bases]
            if make not in names:
                meant = nearest(f"{make}Sampler" if f"{make}Sampler" in names else make, names)
                raise InputError(f"Optuna has no sampler {make!r}; {meant}")
            make = getattr(self._optuna.samplers, make)
        seed = derive_seed("optuna sampler", self.seed) % 2**32  # numpy's limit
        try:
            sampler = make(seed=seed, **(self.options or {}))
        except (TypeError, ValueError) as error:
            raise InputError(f"sampler {self.sampler} cannot be created with {self.options or {}}: {error}") from error
        level = self._optuna.logging.get_verbosity()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)  # no line per study
        try:
            study: optuna.study.Study = self._optuna.create_study(sampler=sampler, direction="maximize")
            return study
        finally:
            self._optuna.logging.set_verbosity(level)


def _imported() -> Any:
    try:
        import optuna  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            "OptunaSearcher needs the package optuna, which is not installed; pip install 'supernet[optuna]'"
        ) from error
    return optuna
