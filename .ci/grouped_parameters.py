"""For the reference: of parameters that a docstring describes together, each has its own type and default.

Griffe gives all of ``reward_min, reward_max`` those of the first.
"""

from __future__ import annotations

import griffe


class GroupedParameters(griffe.Extension):
    """Puts the types and defaults of the code into the sections of docstrings."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        """All objects of a package, once it is loaded."""
        self._mend(pkg)

    def _mend(self, owner: griffe.Object) -> None:
        for member in owner.members.values():
            if member.is_alias or not isinstance(member, griffe.Class | griffe.Module | griffe.Function):
                continue
            if member.docstring:
                for section in member.docstring.parsed:
                    if isinstance(section, griffe.DocstringSectionParameters):
                        for parameter in section.value:
                            _take_over(member, parameter)
            self._mend(member)


def _take_over(of: griffe.Object, parameter: griffe.DocstringParameter) -> None:
    known = of.parameters if isinstance(of, griffe.Class | griffe.Function) else ()
    for one in known:
        if one.name == parameter.name:
            parameter.annotation, parameter.value = one.annotation, _text(one.default)
            return
    # Of a dataclass, whose __init__ is not made yet.
    field = of.members.get(parameter.name)
    if isinstance(field, griffe.Attribute):
        parameter.annotation, parameter.value = field.annotation, _text(field.value)


def _text(value: str | griffe.Expr | None) -> str | None:
    return None if value is None else str(value)
