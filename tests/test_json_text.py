"""JSON has no word for a number that is not finite."""

import math

from tf_mlm.json_text import dump_json


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    assert dump_json({"a": [1.5, math.inf, (math.nan, "inf")], "b": -math.inf}) == (
        '{"a": [1.5, null, [null, "inf"]], "b": null}'
    )
