"""Whether a state is one that a run's actors can go on from, asked before any of them is made."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.agents.server import Server, ServerSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.base.state import State, difference
from ray_pcasgd.engines.base import StateError
from ray_pcasgd.engines.failures import restoring
from ray_pcasgd.tasks.task import TaskData

_PLANNED: State = {
    "rows": 0,
    "seconds": 0.0,
    "agents": [],
    "inboxes": [],
    "shares": [],
    "messages": {},
    "left": [],
    "isolated": [],
}
_LIVE: State = {"seconds": 0.0, "agents": []}


def check_state(state: State, specs: Sequence[LearnerSpec], data: TaskData, is_live: bool) -> None:
    """Raise ``StateError`` where a state is not one of these agents."""
    with restoring():
        _require(difference(_LIVE if is_live else _PLANNED, state))
        for name in ("agents",) if is_live else ("agents", "inboxes", "shares", "left", "isolated"):
            if len(state[name]) != len(specs):
                raise StateError(f"state.{name} has {len(state[name])} parts; allowed are {len(specs)}")
        if not is_live:
            _check_messages(state["messages"])
        examples: dict[Any, State] = {}
        for spec, own in zip(specs, state["agents"], strict=True):
            if is_live and own is None:
                continue  # it was lost when the state was kept
            kind = (type(spec), len(spec.neighbors), spec.share)
            if kind not in examples:
                examples[kind] = _live_example(spec, data) if is_live else _on_cpu(spec).build(data).state()
            _require(difference(examples[kind], own, f"state.agents.{spec.agent}"))


def _require(found: str | None) -> None:
    if found is not None:
        raise StateError(found)


def _check_messages(messages: dict[Any, Any]) -> None:
    for parts in messages.values():
        *tensors, mass, extra = parts[:-1] if parts[5:] == [True] else parts
        if len(tensors) != 3 or not all(part is None or isinstance(part, Tensor) for part in tensors):
            raise StateError("state.messages holds something other than messages")
        _require(difference(1.0, mass, "state.messages.mass"))
        if extra is not None:
            local, mask = extra
            if not all(isinstance(part, Tensor) for part in (*local.values(), *([] if mask is None else [mask]))):
                raise StateError("state.messages holds something other than a worker's own tensors")


def _live_example(spec: LearnerSpec, data: TaskData) -> State:
    spec = _on_cpu(spec)
    if isinstance(spec, WorkerSpec):
        return {"version": 0, "progress": 0}
    if isinstance(spec, ServerSpec):
        more: State = {"arrived": dict.fromkeys(spec.neighbors, 0), "gatherer": None, "isolated": False}
        return Server(spec, data).state() | more
    assert isinstance(spec, AgentSpec)
    weights, buffers, local = Peer(spec, data).snapshot()
    return {"version": 0, "weights": weights, "buffers": buffers, "local": local, "isolated": False}


def _on_cpu(spec: LearnerSpec) -> LearnerSpec:
    return replace(spec, recipe=replace(spec.recipe, device="cpu"))
