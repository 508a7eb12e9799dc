"""A finished run as `mechdiff.run` leaves it, its page's figures left blank: Vega draws for longer than a tiny study computes."""

from typing import Any

import pytest

from mechdiff import api
from mechdiff.report import drawing


def run(*study: Any, **how: Any) -> api.Run:
    """What mechdiff.run does, and all of its page but the drawing of the figures."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(drawing, "to_svg", lambda chart: "<svg/>")
        return api.run(*study, **how)
