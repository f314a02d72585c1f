"""How hard to try, and values that nobody would think of."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: ``CHREODE_FUZZ=20`` tries 20 times as many examples, and other ones every time.
EFFORT = int(os.environ.get("CHREODE_FUZZ", "1"))

#: Anything that JSON or TOML can say.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 2**63, 1e308, "X", "obs/a", "layers/counts"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def examples(number: int) -> settings:
    """Return the settings of a property that is tried on so many examples."""
    return settings(
        max_examples=number * EFFORT,
        derandomize=EFFORT == 1,
        deadline=None,
        phases=(
            Phase.explicit,
            Phase.reuse,
            Phase.generate,
            Phase.shrink,
        ),  # explaining takes minutes
        # fits and files take time, and more on a busy machine; fixtures hold what no example changes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
