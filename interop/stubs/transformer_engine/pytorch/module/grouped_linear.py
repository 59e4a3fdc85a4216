from .._impl import GroupedLinear  # noqa
class _GroupedLinear: pass
