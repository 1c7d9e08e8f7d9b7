"""Strict JSON, without NaN and Infinity."""

import json
import math
from typing import Any


def dump_json(value: Any, **options: Any) -> str:
    """`value` as JSON; a number that is not finite is null, since JSON cannot represent it."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), allow_nan=False, **options)
