"""The studies' settings are settings, at every scale, and pages say what the figures say."""

import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import experiments
from experiments.benchmarks import memory
from experiments.byzantine import bridge, distances, screens, slowdown
from experiments.byzantine import study as byzantine
from experiments.byzantine.methods import ATTACKS
from experiments.byzantine.page import made
from experiments.byzantine.with_servers import kardam
from experiments.compensation import study as compensation
from experiments.convergence.page import crossover, exponents
from experiments.convergence.problem import optimum
from experiments.convergence.study import _rate
from experiments.dc_asgd import study as dc_asgd
from experiments.gpt import study as gpt
from experiments.gpt import text as gpt_text
from experiments.gpt.page import write_page as write_gpt
from experiments.local_steps import study as local_steps
from experiments.pcasgd import study as pcasgd
from experiments.pcasgd.page import _verdict
from experiments.resnet18 import study as resnet18
from experiments.resnet18.network import cifar_resnet18
from experiments.resnet18.page import write_page as write_resnet18
from experiments.returning import study as returning
from experiments.returning.agents import WAYS
from experiments.returning.page import write_page as write_returning
from experiments.rivals import asynchrony as rival_asynchrony
from experiments.rivals import bias as rival_bias
from experiments.rivals import convex as rival_convex
from experiments.rivals import federated as rival_federated
from experiments.rivals import momentum as rival_momentum
from experiments.rivals import pairs as rival_pairs
from experiments.rivals import study as rivals
from experiments.running import SCALES, Job, named, settings_of
from experiments.self_choosing import pauses
from experiments.slow_and_stale import study as slow_and_stale
from experiments.slow_worker import study as slow_worker
from experiments.staleness_aware import study as staleness_aware
from experiments.staleness_aware.page import against_modulated, comparisons
from experiments.studies import ensure_run
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.settings.loading import load_config
from tests.devices import DEVICES

EVERY = 7
"""One of so many runs is checked at the larger scales."""


def of_tasks(jobs_of: Callable[[str, Mapping[str, Any]], Iterator[Job]], settings: Mapping[str, Any]) -> list[Config]:
    return [job.config for task, own in settings.items() for job in jobs_of(task, own)]


def of_dc_asgd(settings: Mapping[str, Any]) -> list[Config]:
    cases = [dc_asgd.Case(method, settings["workers"][0], 0.1, 1, False) for method in dc_asgd.METHODS]
    return [load_config(settings["config"], changes=case.changes(settings, Path("runs"))) for case in cases]


def of_slow_and_stale(settings: Mapping[str, Any]) -> list[Config]:
    law = next(iter(slow_and_stale.LAWS))
    methods = ("sync", "Ringmaster, R = 8", "Rennala, K = 8", slow_and_stale.PEERS)
    cases = [slow_and_stale.Case(law, method, 0.1, 1, False) for method in methods]
    return [load_config(settings["config"], changes=case.settings(10.0, Path("runs"))) for case in cases]


def of_slow_worker(settings: Mapping[str, Any]) -> list[Config]:
    methods = slow_worker.METHODS.values()
    return [load_config(settings["config"], changes={"algorithm": algorithm}) for algorithm in methods]


STUDIES: dict[str, tuple[Path, Callable[[Mapping[str, Any]], list[Config]]]] = {
    "pcasgd": (pcasgd.HERE, lambda settings: of_tasks(pcasgd.jobs_of, settings)),
    "staleness_aware": (staleness_aware.HERE, lambda settings: of_tasks(staleness_aware.jobs_of, settings)),
    "dc_asgd": (dc_asgd.HERE, of_dc_asgd),
    "rivals": (rivals.HERE, lambda settings: [job.config for job in rivals.tuning_jobs(settings)]),
    "rivals, bias": (
        rivals.HERE,
        lambda settings: [rival_bias.config_of(settings["bias"], method, 1) for method in rivals.METHODS],
    ),
    "rivals, pairs": (rivals.HERE, lambda settings: [job.config for job in rival_pairs.tuning_jobs(settings)]),
    "rivals, momentum": (rivals.HERE, lambda settings: [job.config for job in rival_momentum.tuning_jobs(settings)]),
    "rivals, convex": (rivals.HERE, lambda settings: [job.config for job in rival_convex.tuning_jobs(settings)]),
    "rivals, asynchrony": (rivals.HERE, lambda settings: [job.config for job in rival_asynchrony.jobs_of(settings)]),
    "rivals, federated": (rivals.HERE, lambda settings: [job.config for job in rival_federated.tuning_jobs(settings)]),
    "byzantine": (byzantine.HERE, lambda settings: [job.config for job in byzantine.jobs_of(settings)]),
    "slow_and_stale": (slow_and_stale.HERE, of_slow_and_stale),
    "slow_worker": (slow_worker.HERE, of_slow_worker),
    "compensation": (
        compensation.HERE,
        lambda settings: [job.config for job in compensation.jobs_of(settings, Path("text.txt"))],
    ),
    "resnet18": (resnet18.HERE, lambda settings: [job.config for job in resnet18.jobs_of(settings)]),
    "local_steps": (
        local_steps.HERE,
        lambda settings: [job.config for job in local_steps.jobs_of(settings)],
    ),
    "gpt": (gpt.HERE, lambda settings: [job.config for job in gpt.jobs_of(settings)]),
}


ROOT = Path(experiments.__file__).parent
MODULES = sorted(".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_finds_what_it_imports(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_study_could_be_started(study: str, scale: str) -> None:
    folder, configs_of = STUDIES[study]
    configs = configs_of(settings_of(folder, scale))
    assert configs
    for config in configs if len(configs) < 100 else configs[::EVERY]:
        if isinstance(config.engine, LocalSettings) and DEVICES == ["cpu"]:  # as on a machine that has the study's GPU
            config = load_config(config, changes={"engine": {"device": "cpu"}})
        with_defaults(config)


def test_runs_are_named_after_all_but_their_place(tmp_path: Path) -> None:
    one, other = named(Config(), tmp_path), named(Config(name="x", storage_path="elsewhere"), tmp_path)
    assert one == other
    assert named(Config(seed=1), tmp_path).name != one.name


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [(0.03, 0.01, "ahead"), (-0.03, 0.01, "behind"), (0.01, 0.01, "even"), (0.5, float("inf"), "even")],
)
def test_a_difference_counts_from_two_standard_errors_on(difference: float, error: float, verdict: str) -> None:
    assert _verdict(difference, error) == verdict


def test_the_modulated_step_size_is_compared_seed_by_seed() -> None:
    rows = [
        {"task": "t", "workers": workers, "step_size": 0.1, "n": workers, "seed": seed, "correction": correction}
        | {"test_accuracy": 0.1 * seed + gain * (correction == "modulated") + 0.01 * seed * (correction == "modulated")}
        for workers, gain in ((2, 0.2), (4, -0.2), (8, -0.01))
        for seed in (0, 1, 2)
        for correction in ("modulated", "not modulated")
    ]
    assert comparisons(pd.DataFrame(rows))["verdict"].tolist() == ["better", "worse", "even"]


@pytest.mark.parametrize("problem", ["least squares", "logistic"])
def test_the_optimum_is_one(problem: str) -> None:
    """The gradient that the engine would take of all shards at once is zero there."""
    import torch

    from experiments.convergence.problem import CLASSES, Digits, squared_error

    shards = (np.arange(0, 600), np.arange(600, 1797))
    best = optimum(problem, shards, 0.1)
    inputs, labels = (tensor for tensor in Digits().tensors)
    weights = best.weights.clone().requires_grad_()
    matrix, bias = weights[:-CLASSES].view(CLASSES, -1), weights[-CLASSES:]
    loss = squared_error if problem == "least squares" else torch.nn.functional.cross_entropy
    objective = 0.05 * weights.square().sum()
    for shard in shards:
        outputs = inputs[shard].double() @ matrix.T + bias
        objective = objective + loss(outputs, labels[shard]) / len(shards)
    (gradient,) = torch.autograd.grad(objective, weights)
    assert gradient.norm() < 1e-8
    assert best.smallest == pytest.approx(0.1, abs=1e-6)  # of the biases' common shift, or of pixels that never differ
    assert best.largest > best.smallest


def test_rates_exponents_and_crossovers_are_found() -> None:
    steps = np.arange(0, 400, 10)
    curve = pd.DataFrame({"step": steps, "error": np.exp(-0.05 * steps) + 1e-6})
    assert _rate(curve, 1e-6) == pytest.approx(0.05, rel=0.05)
    rows = [
        {"problem": "p", "partition": "q", "theta": 1.0, "topology": "t", "delay": delay, "step_size": eta}
        | {"consensus": 3 * eta**1.5 * delay**0.5, "product": eta * delay}
        for delay in (1, 4)
        for eta in (0.01, 0.1)
    ]
    (found,) = exponents(pd.DataFrame(rows)).to_dict("records")
    assert (found["step size"], found["delay"]) == (pytest.approx(1.5), pytest.approx(0.5))
    ratios = pd.DataFrame({"product": [0.1, 0.5, 1.0, 2.0], "ratio": [0.5, 0.9, 1.2, float("inf")]})
    assert crossover(ratios) == (1.0, 0.5)


def test_the_page_of_memory_says_what_was_measured() -> None:
    results = json.loads(memory.RESULTS.read_text(encoding="utf-8"))
    assert memory.PAGE.read_text(encoding="utf-8") == memory.page(results)
    assert results["now"].keys() == memory.CASES.keys()
    default = "`pc-asgd`, the default"
    # With a process of 0.3 GB around it, an agent of 25 M parameters stays below 2 GB.
    assert results["now"][default]["peak"] * 25e6 + 0.3e9 < 2e9 < results["before"][default]["peak"] * 25e6


@pytest.mark.usefixtures("cifar_folder")
@pytest.mark.slow  # `make studies` does the same
def test_a_resnet18_is_trained_by_its_usual_recipe_with_late_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT.parent)  # where the data's path begins
    settings = settings_of(resnet18.HERE, "smoke")
    jobs = list(resnet18.jobs_of(settings))
    finals = [ensure_run(named(job.config, tmp_path)) for job in jobs]
    frame = pd.DataFrame([job.labels | final for job, final in zip(jobs, finals, strict=True)])
    assert np.isfinite(frame[["test_loss", "consensus_distance"]]).all(axis=None)
    # Late or not, predicted or clipped: no two methods come to the same.
    assert frame["test_loss"].nunique() == len(resnet18.METHODS)
    frame.assign(run=list(resnet18.METHODS)).to_parquet(tmp_path / "results.parquet")
    write_resnet18(settings, tmp_path, "smoke")
    page = (tmp_path / "RESULTS.md").read_text()
    assert all(f"| {method} |" in page for method in resnet18.METHODS)


def test_the_resnet18_of_small_images_keeps_their_size_in_its_first_layers() -> None:
    network = cifar_resnet18()
    seen = []
    network.layer1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, 32, 32)]


def test_a_gpt_learns_files_and_is_tested_on_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt_text, "EVERY", len(gpt_text.files()))  # one file, to be quick
    settings = settings_of(gpt.HERE, "smoke")
    frame = pd.DataFrame(
        [
            job.labels | ensure_run(named(load_config(job.config, changes={"num_steps": 12}), tmp_path))
            for job in gpt.jobs_of(settings | {"config": settings["config"] | {"step_size": 0.02}})
        ]
    ).assign(run=list(gpt.METHODS))
    # Of bytes: less than guessing's 256; and the loss is the mean over as many bytes of each window.
    assert (frame["test_perplexity"] < 200).all()
    assert np.allclose(np.exp(frame["test_loss"]), frame["test_perplexity"], rtol=1e-3)
    frame.to_parquet(tmp_path / "results.parquet")
    write_gpt(settings, tmp_path, "smoke")
    page = (tmp_path / "RESULTS.md").read_text()
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [
        f"| {method}" for method in gpt.METHODS
    ]
    read = [b"".join(bytes(one["input_ids"].tolist()) for one in part()) for part in (gpt_text.train, gpt_text.test)]
    kept, tested = gpt_text.files()[1].read_bytes(), gpt_text.files()[0].read_bytes()
    assert kept[:200] in read[0]
    assert kept[:200] not in read[1]
    assert tested[:200] in read[1]
    assert tested[:200] not in read[0]


def test_an_agent_comes_back_as_the_mean_of_others_with_the_memory_that_it_is_given(tmp_path: Path) -> None:
    settings = settings_of(returning.HERE, "smoke")
    found = [row for way in (*WAYS, returning.STAYED) for row in returning.figures(settings, "AdamW", way, 0)]
    frame = pd.DataFrame(found)
    at_once = frame[(frame["after"] == 0) & (frame["way"] != returning.STAYED)]
    # The memory counts from the next step on.
    assert at_once["loss"].nunique() == 1
    later = frame[frame["after"] == 1]
    assert later["loss"].nunique() == len(WAYS) + 1
    assert frame.groupby("way")["after"].apply(list).tolist() == [[0, 1, 3]] * (len(WAYS) + 1)
    frame.to_parquet(tmp_path / "results.parquet")
    write_returning(settings, tmp_path, "smoke")
    assert (tmp_path / "RESULTS.md").read_text().count("| the optimizer begins anew |") == 1


def test_pauses_of_some_algorithms_take_the_place_of_theirs_alone() -> None:
    names = list(pauses.ALGORITHMS)
    before = pd.DataFrame({"algorithm": [names[0], names[2], names[2]], "end": [1.0, 2.0, 3.0]})
    found = pd.DataFrame({"algorithm": [names[2], names[1]], "end": [4.0, 5.0]})
    merged = pauses.merged(before, found)
    assert merged.to_dict("list") == {"algorithm": names, "end": [1.0, 5.0, 4.0]}


def test_a_late_neighbor_is_as_far_from_where_it_is_by_now_as_it_has_gone_on() -> None:
    """Of two agents, one reads the other as it was a step before, and takes it for half as far as it has come."""
    x = [torch.tensor([float(step), 0.0]) for step in range(3)]
    reader = torch.tensor([0.0, 1.0])
    seen = {(step, 1): distances.Step(x[step], {}) for step in range(3)}
    seen |= {
        (step, 0): distances.Step(reader, {1: (x[step - 1], x[step - 1] + torch.tensor([0.5, 0.0]))} if step else {})
        for step in range(3)
    }
    found = distances.distances(seen)
    assert found["read_truth"] == 1.0
    assert found["taken_truth"] == found["foreseen"] == 0.5
    assert found["truth_reader"] == pytest.approx((2**0.5 + 5**0.5) / 2)


def test_rivals_of_the_modulated_step_size_are_judged_seed_by_seed() -> None:
    labels = {"task": "digits", "workers": 4, "step_size": 0.1}
    accuracies = {"modulated": (0.5, 0.6), "K-sync": (0.6, 0.71), "Rennala": (0.4, 0.49), "Ringmaster": (0.4, 0.8)}
    rows = [
        labels | {"seed": seed, "n": 4 * (name == "modulated"), "correction": name, "test_accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    found = against_modulated(pd.DataFrame(rows)).set_index("method")
    assert found["gain"].to_dict() == pytest.approx({"K-sync": 0.105, "Rennala": -0.105, "Ringmaster": 0.05})
    assert found["verdict"].to_dict() == {"K-sync": "better", "Rennala": "worse", "Ringmaster": "even"}


def test_asysvrg_has_messages_for_as_many_gradients_as_asgd() -> None:
    own = {"config": {"num_agents": 8}, "passes": {16: 30}}
    batches = -(-(1797 // 8) // 16)
    assert rival_convex.num_steps(own, rival_convex.ASGD, 16) == 30 * batches
    # An epoch is a full gradient and two passes of messages, each of two gradients: five passes.
    assert rival_convex.num_steps(own, rival_convex.SVRG, 16) == round(30 * batches * (2 * batches + 1) / (5 * batches))


def of_servers(attack: str, liars: float, honest: float) -> dict[str, Any]:
    labels = {"kind": "servers", "method": "asgd, kardam", "attack": attack, "accuracy": 0.5}
    return labels | {"out_attackers": liars, "out_in_time": np.nan, "out_late": honest}


@pytest.mark.parametrize(
    ("liars", "said"),
    [
        ((0.9, 0.9, 0.9), "**Kardam tells attackers from the honest**"),
        ((0.9, 0.4, 0.9), "**Kardam tells attackers apart under some attacks**"),
        ((0.4, 0.4, 0.3), "**Kardam does not tell attackers apart**"),
    ],
    ids=str,
)
def test_the_page_of_attackers_says_of_kardam_what_the_figures_say(liars: tuple[float, ...], said: str) -> None:
    shares = itertools.chain(liars, itertools.repeat(liars[-1]))
    rows = [of_servers(attack, own, 0.35) for attack, own in zip(byzantine.SERVER_ATTACKS, shares, strict=False)]
    rows += [of_servers("none", np.nan, 0.3), of_servers("none", np.nan, 0.0) | {"method": "asgd"}]
    line = kardam(pd.DataFrame(rows))
    assert said in line
    assert "without attackers it rejects 30.0 % of late gradients" in line


def between_peers(method: str, attack: str, number: int, accuracy: float, seed: int = 1) -> dict[str, Any]:
    labels = {"method": method, "attack": attack, "attackers": number, "accuracy": accuracy, "seed": seed}
    return labels | {"shards": "skewed", "is_late": False}


@pytest.mark.parametrize(("gain", "said"), [(0.02, "helps**"), (0.005, "does not help**"), (-0.1, "does not help**")])
def test_the_page_of_attackers_says_whether_mixing_helps(gain: float, said: str) -> None:
    """More than a point in most of the cases, seed by seed: what one of both was not run with does not count."""
    rows = [between_peers("mean", "none", 0, 0.8, seed) for seed in (1, 2)]
    rows += [between_peers("mean", "alie", 1, 0.5)]
    cases = [("none", 0), *itertools.product(ATTACKS, (1, 2))]
    for attack, number in cases:
        rows += [between_peers("krum", attack, number, accuracy, seed) for seed, accuracy in ((1, 0.76), (2, 0.9))]
        rows += [between_peers("NNM + krum", attack, number, 0.76 + gain)]
    frame = pd.DataFrame(rows)
    text = screens.claims(frame)
    assert f"**Nearest-neighbor mixing {said}, shards skewed, nobody late" in text
    assert "falls to alie (1) (by so many attackers)" in text
    assert ("not all by `NNM + krum` (14 of 14)" in text) == (gain < -0.01)
    (cell,) = [line for line in screens.mixing(frame).splitlines() if line.startswith("| krum")]
    assert f"{100 * gain:+.1f} ({len(cases) if gain > 0.01 else 0} of {len(cases)})" in cell
    (line,) = [
        line for line in screens.tables(frame).splitlines() if line.startswith("| NNM + krum | ") and "*" in line
    ]
    assert line.startswith(
        "| NNM + krum | **66.0 %*** |" if gain < -0.01 else f"| NNM + krum | {76 + 100 * gain:.1f} %* |"
    )


def test_the_page_of_attackers_says_what_was_not_run_at_once() -> None:
    settings = settings_of(byzantine.HERE, "smoke")
    number = sum(1 for _ in byzantine.jobs_of(settings))
    rows = pd.DataFrame(
        {"commit": ["a"] + ["b"] * (number - 1), "again": [False] + [True, True] + [False] * (number - 3)}
    )
    assert made(settings, rows.drop(columns="commit")) == f"All {number} runs of this scale were made."
    text = made(settings, rows)
    assert f"Not all at once: 1 at commit a, {number - 1} at commit b. 2 of the latter were made before" in text
    assert made(settings, rows[1:]).startswith(f"**{number - 1} of the {number} runs of this scale were made**")


@pytest.mark.parametrize(
    ("stood", "said"),
    [
        (0.79, "**BRIDGE's own experiment reproduces**"),
        (0.7, "**BRIDGE's own experiment does not reproduce in all parts**"),
    ],
)
def test_the_page_of_attackers_says_what_bridge_stands(stood: float, said: str) -> None:
    """Bulyan is set for one attacker, and has to stand no more."""
    accuracies = {method: {0: 0.8, 1: 0.8, 2: stood} for method in bridge.METHODS}
    accuracies["mean"] = {0: 0.8, 1: 0.2, 2: 0.1}
    accuracies["bulyan"] = {0: 0.8, 1: 0.8, 2: 0.1}
    rows = [
        {"method": method, "attackers": number, "accuracy": one}
        for method, own in accuracies.items()
        for number, one in own.items()
    ]
    rows += [{"method": bridge.PUBLISHED, "attackers": 0, "accuracy": 0.1}]
    line = bridge.claim(pd.DataFrame(rows))
    assert said in line
    assert line.endswith("the plain mean comes to 10.0 % on the digits.")
    assert ("but not trimmed-mean (70.0 %), median (70.0 %), krum (70.0 %)." in line) == (stood == 0.7)
    assert "| bulyan | 1 | 80.0 % | 80.0 % | **10.0 %** |" in bridge.table(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((100, 105, 120), "reproduces**"),
        ((100, 105, 130), "reproduces for some f**"),
        ((100, 120, np.inf), "does not reproduce**"),
        ((np.inf, np.inf, np.inf), "does not reproduce**"),
    ],
    ids=str,
)
def test_the_page_of_attackers_says_what_kardam_costs(steps: tuple[float, ...], said: str) -> None:
    own = {"batch_size": 16, "goal": 0.8}
    rows = [own | {"method": method, "steps_to": taken} for method, taken in zip(slowdown.FILTERS, steps, strict=True)]
    line = slowdown.text(pd.DataFrame(rows), 8)
    assert f"**A slowdown by Kardam below f/n {said}" in line
    assert ("not there at the end with f = 2" in line) == (steps[2] == np.inf)
    if steps[1] == 105:
        assert "slower by 5.0 % with f = 1, where f/n is 12.5 %" in line
