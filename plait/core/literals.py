"""Constants of a module that are written as literals, read from its text."""

from __future__ import annotations

import ast


def literals(tree: ast.Module) -> dict:
    """{NAME: value} of a module's constants that are literals; others need its code."""
    names: dict = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            try:
                names[node.targets[0].id] = _literal(node.value, names)
            except _NotLiteral:
                continue
    return names


class _NotLiteral(Exception):
    pass


def _literal(node: ast.expr, names: dict):
    """The value of a literal, where dict(...), {**A}, A | B, A + B, -1 and earlier constants count as literals."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in names:
            return names[node.id]
        case ast.Tuple():
            return tuple(_literal(e, names) for e in node.elts)
        case ast.List():
            return [_literal(e, names) for e in node.elts]
        case ast.UnaryOp(op=ast.USub()):
            return -_literal(node.operand, names)
        case ast.BinOp(op=ast.Add()):
            return _literal(node.left, names) + _literal(node.right, names)
        case ast.BinOp(op=ast.BitOr()):
            return _literal(node.left, names) | _literal(node.right, names)
        case ast.Dict():
            out: dict = {}
            for key, value in zip(node.keys, node.values):
                out |= _literal(value, names) if key is None else {_literal(key, names): _literal(value, names)}
            return out
        case ast.Call(func=ast.Name(id="dict"), args=args):
            out = {}
            for a in args:
                out |= _literal(a, names)
            for k in node.keywords:
                out |= _literal(k.value, names) if k.arg is None else {k.arg: _literal(k.value, names)}
            return out
    raise _NotLiteral
