"""The choices of a user in one value."""

import pytest

from swavg import Policy
from swavg.errors import RequestError


@pytest.mark.parametrize("field", ["missing", "integers", "dtype", "accumulate"])
def test_an_unknown_choice_is_refused_with_the_known_ones(field):
    with pytest.raises(RequestError, match=f"{field} is 'nonsense'; it can be"):
        Policy(**{field: "nonsense"})


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_single_glob_is_no_list_of_globs(field):
    with pytest.raises(RequestError, match=f"{field} is one string"):
        Policy(**{field: "head.*"})


def test_a_shard_has_at_least_a_byte():
    with pytest.raises(RequestError, match="max_shard_size is a number of bytes, at least 1"):
        Policy(max_shard_size=0)


def test_only_what_is_changed_is_recorded():
    assert Policy().changed == {}
    assert Policy(strict=False, dtype="float32").changed == {"strict": False, "dtype": "float32"}
