"""The conformance kit for plugins: what every stage, adapter, suite and reward must do, checked with a tiny model.

    from mmcli.testing import check_stage

    def test_conformance(tmp_path):
        assert [check for check in check_stage("focal", folder=tmp_path) if check.problem] == []

`mmcli plugins check NAME` runs the same checks. Nothing here loads torch before a check needs it.
"""

from mmcli.testing.adapters import check_adapter
from mmcli.testing.checks import Check
from mmcli.testing.rewards import check_reward
from mmcli.testing.stages import check_stage
from mmcli.testing.suites import check_suite
from mmcli.testing.tiny import tiny_corpus, tiny_model

__all__ = ["Check", "check_adapter", "check_reward", "check_stage", "check_suite", "tiny_corpus", "tiny_model"]
