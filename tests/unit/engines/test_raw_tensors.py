"""A worker's own tensors travel as plain data of any type, and whatever else comes is named and never used."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.local_tensors import is_same
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents, Extra, Raw, RejectedError
from ray_pcasgd.engines.raw_tensors import Form, extra_of, problem_of, raw, tensor_of
from ray_pcasgd.engines.ray.transport import RayTransport
from ray_pcasgd.engines.validation import Expected, check_contents

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int32, torch.int64]
FORMS: dict[str, Form | None] = {"n": ((), torch.int64), "x": ((2, 3), torch.float32), "late": None}


@pytest.mark.parametrize("dtype", [*TYPES, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)], ids=str)
def test_a_tensor_of_any_type_comes_as_it_went(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = (torch.arange(6.0)[: max(1, int(np.prod(shape)))].reshape(-1)[: int(np.prod(shape))] % 2).to(dtype)
    sent = sent.reshape(shape)
    assert is_same(tensor_of(raw(sent)), sent)
    if sent.ndim == 2:
        assert is_same(tensor_of(raw(sent.t())), sent.t())


def test_what_a_worker_sends_is_what_its_server_takes() -> None:
    extra = extra_of({"n": torch.tensor(3), "x": torch.ones(2, 3), "late": torch.ones(4)}, torch.tensor([True, False]))
    assert extra is not None
    assert problem_of(extra, FORMS, 2) is None
    assert extra_of({}, None) is None


DATA = st.builds(lambda n: np.zeros(n, np.uint8), st.integers(0, 40))
SHAPES = st.one_of(st.just(()), st.just((2, 3)), st.tuples(st.integers(-3, 2**40)), st.just((2,) * 99), st.none())
RAWS = st.one_of(
    st.none(),
    st.builds(
        Raw,
        st.sampled_from(["int64", "float32", "nn", "float33", "", "bool", None]),
        SHAPES,
        st.one_of(DATA, st.none(), st.just(np.zeros((2, 2), np.uint8)), st.just(np.zeros(8))),
    ),
)
MASKS = st.one_of(st.none(), st.just(np.array([True, False])), st.just(np.zeros(2)), st.just([True, False]))
LOCALS = st.one_of(st.none(), st.dictionaries(st.sampled_from(["n", "x", "late", "other", 3, ""]), RAWS, max_size=3))


@given(st.one_of(st.none(), st.text(), st.builds(Extra, LOCALS, MASKS)))
def test_what_comes_is_what_it_must_be_or_named(extra: Any) -> None:
    problem = problem_of(extra, FORMS, 2)
    if problem is not None:
        assert len(problem) < 400
        return
    for name, given_raw in extra.local.items():
        made, form = tensor_of(given_raw), FORMS[name]
        assert form is None or (tuple(made.shape), made.dtype) == form
    assert extra.with_gradient is None or extra.with_gradient.tolist() == [True, False]


def test_nothing_of_the_kind_is_taken_from_peers() -> None:
    contents = Contents(np.ones(4, np.float32), np.ones(2, np.float32), None, Extra({}))
    with pytest.raises(RejectedError, match="its extra is of type Extra; allowed is no extra"):
        check_contents(RayTransport(0), Expected((1,), 10, 4, 2), Header(1, 3, 1.0, 0.1), contents)
    check_contents(RayTransport(0), Expected((1,), 10, 4, 2, forms={}, num_tensors=1), Header(1, 3, 1.0, 0.1), contents)
