"""References: replacing what stands for a result by the result, when it is in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.errors import UnreadableValueError
from ckworkflow.model import Json, NodeId, RunId
from ckworkflow.store import nodes
from ckworkflow.tracing import UnresolvableError, project

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction


def resolve_tree(
    tx: Transaction, run_id: RunId, tree: Json, known: Mapping[NodeId, str] | None = None
) -> Json:
    """Return the encoded tree without references.

    Raises:
        UnresolvableError: A result has no such part, or only its own code could give it.
    """
    if not has_references(tree):
        return tree
    return codec.encode(resolve_value(tx, run_id, tree, known), path="result")


def resolve_value(
    tx: Transaction, run_id: RunId, tree: Json, known: Mapping[NodeId, str] | None = None
) -> Any:
    """Return the decoded value, references followed; `known` results need not be read.

    Raises:
        UnresolvableError: As `resolve_tree`.
    """
    wanted = {node_id for node_id, _ in _references(tree)}
    return _follow(tree, nodes.load_outputs(tx, run_id, wanted, known) if wanted else {})


def _follow(tree: Json, outputs: Mapping[NodeId, str]) -> Any:
    def follow(ref: Any) -> Any:
        node_id, path = ref
        if node_id not in outputs:
            raise UnresolvableError(node_id)
        # Decoded anew for each use: two arguments never share a mutable value.
        return project(
            codec.decode(codec.loads(outputs[node_id])), tuple((kind, key) for kind, key in path)
        )

    return codec.decode(tree, ref=follow)


def resolve_known(tree: Json, known: Mapping[NodeId, str]) -> Any | None:
    """Do what `resolve_value` does with results that are known; `None` if they are not enough."""
    if any(node_id not in known for node_id, _ in _references(tree)):
        return None
    try:
        return _follow(tree, known)
    except (UnreadableValueError, UnresolvableError):
        return None


def has_references(tree: Json) -> bool:
    """Whether something in an encoded tree stands for a result."""
    return bool(_references(tree))


def _references(tree: Json) -> list[tuple[NodeId, Any]]:
    found: list[tuple[NodeId, Any]] = []
    _find_references(tree, found)
    return found


def _find_references(tree: Any, found: list[tuple[NodeId, Any]]) -> None:
    if isinstance(tree, dict):
        if tree.get("$") == "ref":
            node_id, path = tree["v"]
            found.append((NodeId(node_id), path))
            return
        tree = tree.values()
    elif not isinstance(tree, list):
        return
    for value in tree:
        if isinstance(value, dict | list):
            _find_references(value, found)
