"""Laws in one word, wherever a law stands, with the unit that they say; and measured delays in their own units."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.schedule.law_measured import MeasuredLaw
from ray_pcasgd.schedule.law_text import FORMS, parse_delay
from ray_pcasgd.schedule.law_trace import TraceLaw
from ray_pcasgd.schedule.laws import ConstantLaw, Exponential, Law, LogNormal, Outage, Pareto, UniformLaw


def link(*assignments: str, **entry: Any) -> tuple[Any, str | None]:
    """Return delay and unit of the first link: of an entry, or of the default one, after assignments."""
    first = load_config({"links": [entry]} if entry else {}, assignments).links[0]
    return first.delay, first.unit


def refusal(*assignments: str, **tree: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_config(tree, assignments)
    return str(caught.value)


def test_the_forms_are_those_of_the_laws() -> None:
    for law in get_args(get_args(Law)[0]):
        fields = {name: field for name, field in law.model_fields.items() if name != "name"}
        name = law.model_fields["name"].default
        if law in (MeasuredLaw, TraceLaw):
            assert name not in FORMS
            continue
        assert FORMS[name].required == [key for key, field in fields.items() if field.is_required()]
        assert FORMS[name].numbers == list(fields)


@pytest.mark.parametrize(
    ("text", "law", "unit"),
    [
        ("pareto(2, 3s)", Pareto(shape=2, scale=3), "seconds"),
        ("constant(5000ms)", ConstantLaw(value=5), "seconds"),
        ("200ms", ConstantLaw(value=0.2), "seconds"),
        ("0.2 s", ConstantLaw(value=0.2), "seconds"),
        ("1e-1s", ConstantLaw(value=0.1), "seconds"),
        ("700ms", ConstantLaw(value=0.7), "seconds"),
        ("10 steps", ConstantLaw(value=10), "steps"),
        ("1 step", ConstantLaw(value=1), "steps"),
        ("uniform(2 steps, 4 steps)", UniformLaw(low=2, high=4), "steps"),
        ("uniform(0, 300ms)", UniformLaw(low=0, high=0.3), "seconds"),
        ("outage(5s, 1s, 0)", Outage(mean_up=5, mean_down=1, delay=0), "seconds"),
        ("outage(5s, 1s)", Outage(mean_up=5, mean_down=1), "seconds"),
        ("Pareto(shape=2, scale=100ms)", Pareto(shape=2, scale=0.1), "seconds"),
        ("lognormal(1, .5)", LogNormal(median=1, sigma=0.5), None),
        ("exponential(3)", Exponential(mean=3), None),
    ],
)
def test_a_delay_in_one_word_says_its_unit(text: str, law: Any, unit: str | None) -> None:
    assert link(delay=text) == (law, unit)
    assert link(f"links.0.delay={text}") == (law, unit)
    assert with_defaults(load_config({"links": [{"delay": text}]})).links[0].unit == (unit or "steps")


@pytest.mark.parametrize("text", ["pareto(2, 3s)", "constant(5000ms)", "3s", "{name: pareto, shape: 2, scale: 3s}"])
def test_a_delay_in_seconds_over_an_entry_in_steps_is_one_in_seconds(text: str) -> None:
    assert link(f"links.0.delay={text}", delay=2, unit="steps")[1] == "seconds"


def test_one_number_of_a_law_may_bring_its_unit() -> None:
    assert link("links.0.delay.value=5s", delay=2, unit="steps") == (ConstantLaw(value=5), "seconds")
    assert link("links.0.delay.scale=100ms", delay="pareto(2, 1)") == (Pareto(shape=2, scale=0.1), "seconds")
    assert link("links.0.delay.value=7", delay="5s") == (ConstantLaw(value=7), "seconds")


def test_a_number_without_a_unit_leaves_that_of_the_entry() -> None:
    assert link("links.0.delay=5", delay=2, unit="seconds") == (ConstantLaw(value=5), "seconds")
    assert link("links.0.delay=10 steps", delay=2, unit="seconds") == (ConstantLaw(value=10), "steps")


CONTRADICTION = (
    "links.0.unit = 'steps': the delay, 'pareto(2, 3s)', is in seconds; allowed is seconds, or a delay without "
)


def test_a_unit_that_contradicts_the_delay_is_refused_wherever_the_two_are_given() -> None:
    entry = {"delay": "pareto(2, 3s)", "unit": "steps"}
    assert refusal(links=[entry]).startswith(CONTRADICTION)
    assert refusal("links.0.delay=pareto(2, 3s)", "links.0.unit=steps").startswith(CONTRADICTION)
    assert refusal("links.0.unit=steps", "links.0.delay=pareto(2, 3s)").startswith(CONTRADICTION)
    assert refusal("links.0.unit=steps", links=[{"delay": "pareto(2, 3s)"}]).startswith(CONTRADICTION)
    assert refusal(links=[{"delay": {"name": "constant", "value": "5s"}, "unit": "steps"}]).endswith("without a unit")
    with pytest.raises(SettingsError, match="is in seconds; allowed is seconds"):
        load_config(None, changes={"links": [entry]})


@pytest.mark.parametrize("place", ["compute.law", "compute.agents.3", "compute.stragglers.3"])
@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("pareto(2, 1)", Pareto(shape=2, scale=1)),
        ("exponential(2s)", Exponential(mean=2)),
        ("200ms", ConstantLaw(value=0.2)),
        ("0.2s", ConstantLaw(value=0.2)),
        ("0.2", ConstantLaw(value=0.2)),
    ],
)
def test_compute_times_may_be_written_in_one_word_too(place: str, text: str, law: Any) -> None:
    compute = load_config(None, [f"{place}={text}"]).compute
    assert {"compute.law": compute.law, **{f"compute.agents.{k}": v for k, v in compute.agents.items()},
            **{f"compute.stragglers.{k}": v for k, v in compute.stragglers.items()}}[place] == law  # fmt: skip


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("compute.law=3 steps", "compute.law = '3 steps': is in steps; allowed are seconds, with s, ms or no unit"),
        (
            "compute.law={name: exponential, mean: 3 steps}",
            "compute.law = {'name': 'exponential', 'mean': '3 steps'}: is in steps; allowed are seconds",
        ),
        ("compute.law=pareto(2)", "compute.law = 'pareto(2)': allowed is pareto(shape, scale)"),
        ("compute.law=pareto(2, 1, 3)", "compute.law = 'pareto(2, 1, 3)': allowed is pareto(shape, scale)"),
        ("compute.law=pareto(2, shape=3)", "compute.law = 'pareto(2, shape=3)': allowed is pareto(shape, scale)"),
        ("compute.law=outage(1)", "compute.law = 'outage(1)': allowed is outage(mean_up, mean_down[, delay])"),
        ("compute.law=pareto(0.01, 1)", "compute.law = 'pareto(0.01, 1)': shape: allowed are values from 0.1 on"),
        (
            "compute.stragglers={2: constant(-1)}",
            "compute.stragglers.2 = 'constant(-1)': value: allowed are values from",
        ),
        ("compute.agents.3=exponential(0)", "compute.agents.3 = 'exponential(0)': mean: allowed are values above 0"),
        ("compute.law=exponential(1e300)", "compute.law = 'exponential(1e300)': mean: allowed are values up to 1e+09"),
        ("compute.law=uniform(3, 1)", "compute.law.high = 1: allowed is low = 3 or more"),
        (
            "compute.law=pareto(2s, 1s)",
            "compute.law = 'pareto(2s, 1s)': shape = '2s' has a unit; allowed is a plain num",
        ),
        ("links.0.delay=uniform(1s, 2)", "links.0.delay = 'uniform(1s, 2)': allowed is one unit for all of its times"),
        ("links.0.delay=uniform(1s, 2 steps)", "links.0.delay = 'uniform(1s, 2 steps)': allowed is one unit for all"),
        (
            "links.0.delay=exponental(2)",
            "links.0.delay = 'exponental(2)': allowed are constant, uniform, exponential, ",
        ),
        ("links.0.delay=exponential(2", "links.0.delay = 'exponential(2': allowed are constant, uniform, "),
        ("links.0.delay=5 minutes", "links.0.delay = '5 minutes': allowed are constant, uniform, "),
        (
            "links.0.delay=measured(x.csv)",
            "links.0.delay = 'measured(x.csv)': allowed for measured values are settings",
        ),
        ("links.0.delay='5'", "links.0.delay = '5': is text; allowed is 5 without quotes, or with a unit"),
        ("links.0.delay=constant(.inf)", "links.0.delay = 'constant(.inf)': value: allowed are finite numbers"),
        ("links.0.delay=1.0e+308", "links.0.delay = 1e+308: allowed are values up to 1e+09"),
        ("links.0.delay=soon", "links.0.delay = 'soon': allowed are numbers, constant, uniform, exponential, "),
    ],
)
def test_an_error_in_a_law_names_the_setting_as_it_was_written(assignment: str, expected: str) -> None:
    line = refusal(assignment)
    assert line.startswith(expected)
    assert "\n" not in line


def test_a_delay_of_the_command_line_is_read_alike_and_a_bare_number_of_it_counts_steps() -> None:
    assert parse_delay("20") == ({"name": "constant", "value": 20}, "steps")
    assert parse_delay("exponential(mean=2s)") == ({"name": "exponential", "mean": 2.0}, "seconds")
    for text in ("soon", "exponential", "pareto(2)", "measured(x.csv)", "", "(", "5 5"):
        with pytest.raises(ValueError, match=r"^law = .*allowed"):
            parse_delay(text)


PING = "".join(f"64 bytes from 10.0.0.1: icmp_seq={k} ttl=64 time={ms} ms\n" for k, ms in enumerate([20.4, 31.0, 18.6]))


def measured(path: Path, content: str, **settings: Any) -> MeasuredLaw:
    path.write_text(content)
    return MeasuredLaw(path=path, **settings)


def test_measured_delays_have_units_headers_or_none_and_are_halved_where_they_are_there_and_back(
    tmp_path: Path,
) -> None:
    times = "\n".join(line.rpartition("time=")[2].removesuffix(" ms") for line in PING.splitlines())
    bare = measured(tmp_path / "rtt.csv", times, column=0, unit="ms", round_trip=True)
    np.testing.assert_allclose(bare.values, [0.0102, 0.0155, 0.0093])
    named = measured(tmp_path / "named.csv", "host, rtt\na, 20\nb, 30\n", column="rtt", unit="ms")
    np.testing.assert_allclose(named.values, [0.02, 0.03])
    second = measured(tmp_path / "two.csv", "0,20\n1,30\n", column=1, unit="us")
    np.testing.assert_allclose(second.values, [2e-5, 3e-5])
    assert measured(tmp_path / "plain.csv", "delay\n1\n2.5\n").values == (1.0, 2.5)


def test_the_unit_of_measured_delays_is_that_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("delay\n200\n")
    law = {"name": "measured", "path": str(tmp_path / "d.csv")}
    (entry,) = with_defaults(load_config({"links": [{"delay": law | {"unit": "ms"}}]})).links
    assert entry.unit == "seconds"
    assert entry.delay.sampler(generator(0, "test"))(0.0) == 0.2
    assert with_defaults(load_config({"links": [{"delay": law | {"unit": "steps"}}]})).links[0].unit == "steps"
    assert with_defaults(load_config({"links": [{"delay": law}]})).links[0].unit == "steps"
    line = refusal(links=[{"delay": law | {"unit": "ms"}, "unit": "steps"}])
    assert line.startswith("links.0.unit = 'steps': the delay, {'name': 'measured'")
    assert load_config({"compute": {"law": law | {"unit": "ms"}}}).compute.law.expectation() == 0.2
    assert "is in steps; allowed are seconds" in refusal(compute={"law": law | {"unit": "steps"}})


def test_a_parquet_file_has_names_of_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column = 0: allowed in a Parquet file is a name"):
        MeasuredLaw(path=tmp_path / "d.parquet", column=0)


@pytest.mark.parametrize("delay", ["pareto(" + "1" * 3000, {"name": "constant", "value": "x" * 3000}, "x" * 3000])
def test_whatever_is_long_is_cut_in_a_refusal(delay: Any) -> None:
    with pytest.raises(SettingsError) as raised:
        load_config({"links": [{"delay": delay}]})
    assert len(str(raised.value)) < 600
