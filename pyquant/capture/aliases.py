"""Which traced values share memory, so that an operation in place is never seen too late."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

# Operations that may return their very input without saying so in their schema.
_SILENT_ALIASES = ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout")


def base_of(node: fx.Node) -> fx.Node:
    """Return the value whose memory `node` writes to or is a view of, itself if there is none."""
    while isinstance(source := _aliased_input(node), fx.Node):
        node = source
    return node


def is_in_place(node: fx.Node) -> bool:
    """Return whether the operation writes to its first input."""
    return isinstance(node.target, OpOverload) and bool(node.target._schema.is_mutable)


def writes_through_views(graph: fx.Graph) -> bool:
    """Return whether some value is read, under an older name, after an operation in place has changed it.

    The trace hands the result of an operation in place on to all later readers of that same tensor; only readers of
    another view of it still have the old value.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    views: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        earlier = views.setdefault(base_of(node), [])
        if is_in_place(node) and any(order[reader] > order[node] for view in earlier for reader in view.users):
            return True
        earlier.append(node)
    return False


def _aliased_input(node: fx.Node) -> object:
    target = node.target
    if not isinstance(target, OpOverload) or not node.args:
        return None
    schema = target._schema
    if schema.is_mutable or schema.name in _SILENT_ALIASES or any(r.alias_info is not None for r in schema.returns):
        return node.args[0]
    return None
