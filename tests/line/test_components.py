"""A component that is missing skips a test on a laptop, and fails it in CI."""

from __future__ import annotations

import pytest

from tests.line import components


def test_a_missing_component_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(components.INSTALL, "nothing", "apt-get install nothing")
    monkeypatch.setitem(components.MODULES, "here", "json")
    monkeypatch.delenv("VISIONAD_DEMAND_LINE", raising=False)
    components.need("here")
    with pytest.raises(pytest.skip.Exception, match="apt-get install nothing"):
        components.need("here", "nothing")
    monkeypatch.setenv("VISIONAD_DEMAND_LINE", "1")
    components.need("here")
    with pytest.raises(pytest.fail.Exception, match=r"\.ci/line_components installs it"):
        components.need("nothing")
