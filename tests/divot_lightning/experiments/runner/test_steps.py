"""A plan names each step once and waits only for what stands before."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.runner.steps import Step, check_plan


def test_plan_in_order_is_accepted():
    check_plan([Step("a", ("true",)), Step("b", ("true",), after=("a",))])


def test_names_are_unique():
    with pytest.raises(UserError, match="'twice'"):
        check_plan([Step("twice", ("true",)), Step("twice", ("true",))])


@pytest.mark.parametrize("after", ["later", "nowhere", "a"])
def test_a_step_waits_only_for_steps_before_it(after):
    with pytest.raises(UserError, match=after):
        check_plan([Step("a", ("true",), after=(after,)), Step("later", ("true",))])
