"""What classes that are not the package's own promise: who breaks it is refused before anything starts."""

import itertools
import math
import random
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from ray_pcasgd.records import StepReport, Update
from ray_pcasgd.rules.base import Rule, averaged_step
from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.schedule.law_base import Sampler
from ray_pcasgd.schedule.law_own import OwnLaw
from ray_pcasgd.schedule.topology import OwnMixing
from tests.unit.base.test_doors import CUSTOM, LOCAL, Half, Jumps, MeanServer, Path, Slower, refusal


class Breaking(Rule):
    """Breaks one promise, by its setting."""

    name: Literal["breaking"] = "breaking"
    how: str = ""

    def step(self, state: Any, own: Any, reads: Any, probe: Any = None) -> Any:
        weights = averaged_step(own.mixing, reads.mixing, own, reads)
        if self.how == "in place":
            own.weights.add_(1)
        if self.how == "raises":
            raise ZeroDivisionError("at last")
        results: dict[str, Any] = {
            "shape": lambda: (state, Update(weights[:-1], {})),
            "type": lambda: (state, Update(weights.double(), {})),
            "nan": lambda: (state, Update(weights * math.nan, {})),
            "itself": lambda: (state, Update(own.weights, {})),
            "list": lambda: [state, weights],
            "no update": lambda: (state, weights),
            "measure": lambda: (state, Update(weights, {"size": 3.0})),
            "state": lambda: ((weights,), Update(weights, {})),
            "random": lambda: (state, Update(weights + random.random(), {})),
            "torch": lambda: (state, Update(weights + torch.rand(()), {})),
            "if": lambda: (state, Update(weights if reads.staleness.sum() > 100 else weights + 0.0, {})),
            "sum": lambda: (state, Update(weights * (weights @ weights), {})),
        }
        return results.get(self.how, lambda: (state, Update(weights, {})))()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("in place", "step changes its inputs in place; "),
        ("raises", f"{__name__}:Breaking fails (ZeroDivisionError: at last)"),
        ("shape", "the weights that step returns is torch.float32 of shape (199,); "),
        ("type", "the weights that step returns is torch.float64 of shape (200,); "),
        ("nan", "the weights that step returns has numbers that are not finite"),
        ("itself", "the weights that step returns is one of the inputs; "),
        ("list", "step returns a list; allowed is a pair (state, Update(weights, measures))"),
        ("no update", "step returns (state, ...) without Update; "),
        ("measure", "its measure size is 3.0; allowed are tensors of shape ()"),
        ("state", "step returns a state of another structure than init; "),
        ("random", "step gives other results for the same inputs; "),
        ("torch", "step gives other results for the same inputs; "),
        ("if", "step cannot run for several agents at once ("),
    ],
)
def test_a_rule_that_breaks_a_promise_is_refused_before_anything_starts(how: str, expected: str) -> None:
    said = refusal(CUSTOM | {"rule": f"{__name__}:Breaking", "settings": {"how": how}})
    assert expected in said
    assert said.startswith("algorithm.name = 'breaking': ")


class Alone(Breaking):
    """As ``Breaking``, but it says that its agents are stepped one by one."""

    name: Literal["alone"] = "alone"  # type: ignore[assignment]
    how: str = "if"
    stackable: ClassVar[bool] = False


def test_a_rule_with_an_if_on_a_tensor_runs_agent_by_agent() -> None:
    check_rule(Alone())
    assert "engine.batched = 'always'" in refusal(Alone(), ("engine.batched=always",))
    assert make_plan(load_config(LOCAL | {"algorithm": Alone(), "num_agents": 40})).specs


CALLS = itertools.count()


class Timed(Jumps):
    name: Literal["timed"] = "timed"  # type: ignore[assignment]

    def draws(self, random: np.random.Generator) -> Sampler:
        return lambda moment: next(CALLS) % 7 / 10


class Negative(Jumps):
    name: Literal["negative"] = "negative"  # type: ignore[assignment]
    after: int = 0

    def draws(self, random: np.random.Generator) -> Sampler:
        values = iter(range(self.after, -1_000, -1))
        return lambda moment: float(next(values))


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (Timed(), "it draws other values from the same generator; allowed is to draw from the one given alone"),
        (Negative(), "the law 'negative' has drawn -1.0; allowed are numbers from 0 on, up to 1e+09"),
    ],
)
def test_a_law_that_plans_cannot_rely_on_is_refused(law: OwnLaw, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_config(LOCAL | {"links": [{"delay": law}]})
    assert str(caught.value).startswith("links.0.delay = ")
    assert str(caught.value).endswith(expected)


class Restless(Path):
    name: Literal["restless"] = "restless"  # type: ignore[assignment]

    def edges(self, num_agents: int, random: np.random.Generator) -> Any:
        return [(0, 1 + next(CALLS) % (num_agents - 1)), *((0, k) for k in range(1, num_agents))]


class Beyond(Path):
    name: Literal["beyond"] = "beyond"  # type: ignore[assignment]

    def edges(self, num_agents: int, random: np.random.Generator) -> Any:
        return [(0, num_agents)]


def test_a_topology_that_differs_from_call_to_call_is_refused() -> None:
    with pytest.raises(SettingsError, match="topology: its edges differ from call to call; allowed is to draw from"):
        make_plan(load_config(LOCAL | {"topology": Restless()}))


def test_a_topology_of_other_agents_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"topology: the pair \[0, 4\]; allowed are two different agents"):
        make_plan(load_config(LOCAL | {"topology": Beyond()}))


class Odd(Half):
    name: Literal["odd"] = "odd"  # type: ignore[assignment]
    number: Any = 0

    def num_gradients(self, num_workers: int) -> Any:
        return self.number


@pytest.mark.parametrize("number", [0, 5, 2.5, True, None])
def test_a_policy_takes_one_gradient_to_as_many_as_there_are_workers(number: Any) -> None:
    said = refusal({"name": "server", "gathering": Odd(number=number)})
    assert said.startswith(f"algorithm.gathering.name = 'odd': takes {number!r} gradients for an update; ")


class Adapting(Half):
    name: Literal["adapting"] = "adapting"  # type: ignore[assignment]
    every: Any = 1.0
    number: Any = 1

    @property
    def adapts_every(self) -> Any:
        return self.every

    def adapted(self, num_workers: int, k: int, ratio: float) -> Any:
        return self.number


@pytest.mark.parametrize("every", [-1.0, math.nan, "1", True])
def test_a_policy_adapts_after_seconds_above_0(every: Any) -> None:
    said = refusal({"name": "server", "gathering": Adapting(every=every)})
    assert f"adapts_every is {every!r}; allowed are None and finite numbers above 0" in said


@pytest.mark.parametrize("number", ["2", 1.5, None])
def test_a_policy_adapts_to_whole_numbers(number: Any) -> None:
    said = refusal({"name": "server", "gathering": Adapting(number=number)})
    assert f"adapts the gradients for an update to {number!r}; allowed are whole numbers" in said


class Moody(Half):
    name: Literal["moody"] = "moody"  # type: ignore[assignment]
    raises: bool = False

    def num_gradients(self, num_workers: int) -> int:
        if self.raises:
            raise KeyError("no")
        return next(_NUMBERS)


_NUMBERS = itertools.cycle((1, 2, 3))


def test_a_policy_that_differs_from_call_to_call_or_raises_is_refused() -> None:
    assert "takes other numbers of gradients from call to call" in refusal({"name": "server", "gathering": Moody()})
    said = refusal({"name": "server", "gathering": Moody(raises=True)})
    assert said.startswith("algorithm: its check fails (KeyError: 'no'")


class Wrong(MeanServer):
    name: Literal["wrong"] = "wrong"  # type: ignore[assignment]
    how: str = ""

    @property
    def local_steps(self) -> int:
        return 0 if self.how == "steps" else 1

    def gather(self, state: Any, center: torch.Tensor, delivered: Any) -> Any:
        gradient = delivered[0].late.gradient
        if self.how == "in place":
            center.add_(1)
        results: dict[str, Any] = {
            "shape": lambda: (state, gradient[:-1]),
            "type": lambda: (state, gradient.double()),
            "nan": lambda: (state, gradient * math.nan),
            "alone": lambda: gradient,
            "state": lambda: ((center,), gradient),
            "random": lambda: (state, gradient * random.random()),
        }
        return results.get(self.how, lambda: (state, gradient))()


class Doubled(Wrong):
    name: Literal["doubled"] = "doubled"  # type: ignore[assignment]
    message_vectors: ClassVar[int] = 2  # type: ignore[misc]


class Undecided(ServerRule):
    name: Literal["undecided"] = "undecided"

    def gather(self, state: Any, center: torch.Tensor, delivered: Any) -> Any:
        return state, center


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("in place", "gather changes its inputs in place; "),
        ("shape", "what gather returns is torch.float32 of shape (199,); "),
        ("type", "what gather returns is torch.float64 of shape (200,); "),
        ("nan", "what gather returns has numbers that are not finite"),
        ("alone", "gather returns a Tensor; allowed is a pair (state, gradient or weights)"),
        ("state", "gather returns a state of another structure than init; "),
        ("random", "gather gives other results for the same inputs; "),
        ("steps", "local_steps is 0; allowed are whole numbers from 1 on"),
    ],
)
def test_a_server_rule_that_breaks_a_promise_is_refused_before_anything_starts(how: str, expected: str) -> None:
    assert expected in refusal(Wrong(how=how))


def test_a_server_rule_says_who_steps_and_a_good_one_passes() -> None:
    assert "workers_step is None; allowed are True and False" in refusal(Undecided())
    assert "message_vectors is 2; allowed is 1 where workers_step is False" in refusal(Doubled())
    check_rule(Wrong())


class Pulled(MeanServer):
    """Reads all that a message says of where it was computed."""

    name: Literal["pulled"] = "pulled"  # type: ignore[assignment]
    needs_gap: ClassVar[bool] = True  # type: ignore[misc, assignment]

    def gather(self, state: Any, center: torch.Tensor, delivered: Any) -> Any:
        late = delivered[0].late
        assert torch.equal(late.present, center)
        assert torch.equal(late.present - late.computed_at, late.gap)
        return state, late.gradient + 0.1 * (late.present - late.computed_at)


class PulledInParts(Pulled):
    name: Literal["pulled-in-parts"] = "pulled-in-parts"  # type: ignore[assignment]
    workers_step: ClassVar[bool] = True
    takes_fragments: ClassVar[bool] = True


@pytest.mark.parametrize("rule", [Pulled(), PulledInParts()], ids=lambda rule: rule.name)
def test_a_server_rule_of_one_s_own_is_told_where_a_message_was_computed(rule: Pulled) -> None:
    """Before the start as in the run, in which some messages are late; in parts, the same part of each vector."""
    wire = {"fragments": 3} if rule.takes_fragments else "float32"
    config = load_config(LOCAL | {"algorithm": rule, "wire": wire, "links": [{"delay": "1.5s"}]})
    plan = make_plan(config)
    reports = list(plan.engine().run(plan.specs, plan.data))
    rows = [report.row for report in reports if isinstance(report, StepReport)]
    assert max(read.staleness for row in rows if row.agent == 4 for read in row.reads) > 0


class Wavering(OwnMixing):
    name: Literal["wavering"] = "wavering"

    def weights(self, neighbors: Any) -> Any:
        share = 0.1 * next(_NUMBERS)
        return np.full((len(neighbors), len(neighbors)), share) + (1 - share * len(neighbors)) * np.eye(len(neighbors))


class Uneven(Wavering):
    name: Literal["uneven"] = "uneven"  # type: ignore[assignment]

    def weights(self, neighbors: Any) -> Any:
        return np.ones((len(neighbors), len(neighbors)))


def test_a_mixing_that_differs_from_call_to_call_or_is_none_is_refused() -> None:
    settings = LOCAL | {"topology": "complete"}
    with pytest.raises(SettingsError, match="mixing: its weights differ from call to call"):
        make_plan(load_config(settings | {"mixing": Wavering()}))
    with pytest.raises(SettingsError, match="mixing: row 0 sums to 4; allowed is 1"):
        make_plan(load_config(settings | {"mixing": Uneven()}))


class Curved(Slower):
    """Asks for the curvature, by its setting."""

    name: Literal["curved"] = "curved"  # type: ignore[assignment]
    how: str = ""
    needs_drift: ClassVar[bool] = True
    measures_curvature: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def needs_directions(self) -> bool:  # type: ignore[override]
        return self.how != "directions"

    @property
    def age_max(self) -> int:
        return 4

    @property
    def drift_kind(self) -> Any:
        return "after" if self.how == "drift" else "before"

    @property
    def drift_form(self) -> Any:
        return self.how if self.how in ("velocity", "guess") else "exact"

    @property
    def curvature_every(self) -> int:
        return 0 if self.how == "every" else 2

    @property
    def curvature_samples(self) -> Any:
        return 2.5 if self.how == "samples" else 4

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        return super().coefficients(agent, step) | ({} if self.how == "coefficient" else {"curvature": 0.0})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("directions", "measures_curvature is True; allowed is that where needs_directions is True, too"),
        ("coefficient", "measures_curvature is True; allowed is that with 'curvature' among its coefficients"),
        ("every", "curvature_every is 0; allowed are whole numbers from 1 on"),
        ("samples", "curvature_samples is 2.5; allowed are whole numbers from 1 on"),
        ("drift", "drift_kind is 'after'; allowed are 'mean', 'before'"),
        ("guess", "drift_form is 'guess'; allowed are 'exact', 'velocity'"),
        ("velocity", "drift_form is 'velocity'; allowed with drift_kind = 'before' is 'exact'"),
    ],
)
def test_a_rule_that_asks_for_the_curvature_or_a_drift_says_what_it_needs(how: str, expected: str) -> None:
    said = refusal(CUSTOM | {"rule": f"{__name__}:Curved", "settings": {"how": how}})
    assert expected in said


def test_a_rule_of_one_s_own_is_told_the_curvature() -> None:
    seen: list[float] = []

    class Watching(Curved):
        name: Literal["watching"] = "watching"  # type: ignore[assignment]

        def step(self, state: Any, own: Any, reads: Any, probe: Any = None) -> Any:
            seen.append(float(own.coefficients["curvature"]))
            return super().step(state, own, reads, probe)

        stackable: ClassVar[bool] = False

    config = load_config(LOCAL | {"algorithm": Watching(), "num_steps": 4, "links": [{"delay": 1}]})
    plan = make_plan(config)
    before = len(seen)
    list(plan.engine().run(plan.specs, plan.data))
    assert any(value > 0 for value in seen[before:])
