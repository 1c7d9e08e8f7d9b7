"""The probabilities of given words at the masks of a sentence."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_mlm.errors import Refused
from tf_mlm.inference.fill_mask import MaskedText, columns_of_masks, find_masks, heading
from tf_mlm.inference.masked_copies import MaskedCopy, Predictor, build_predictor, log_probabilities
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.loading import load_trained

_BAR = 20  # characters of a bar for 100 %
_NOT_COMPARABLE = " do not compare the probabilities of targets with different numbers of tokens"


class TargetFill(NamedTuple):
    """A target at a mask. `sentence` is as given, with the target in place of its mask."""

    target: str
    probability: float
    num_tokens: int
    sentence: str


class TargetAnswer(NamedTuple):
    """The targets at the masks of one sentence.

    Attributes:
        fills: for each mask all targets, in the given order, while the other masks stay masked.
    """

    sentence: str
    fills: list[list[TargetFill]]

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {"fills": [[fill._asdict() for fill in fills] for fills in self.fills]}


def load_target_filler(name: str) -> Callable[[str, Sequence[str]], TargetAnswer]:
    """`fill_targets` for a model directory or a model on the Hub.

    Raises:
        Refused: there is no such model, or it has no trained head.
    """
    model, tokenizer = load_trained(name)
    return functools.partial(fill_targets, model, build_predictor(model), tokenizer)


def fill_targets(model: Any, predict: Predictor, tokenizer: Any, sentence: str, targets: Sequence[str]) -> TargetAnswer:
    """The probabilities of `targets` at each mask of `sentence`.

    For a target of n tokens, n masks replace the mask of the sentence. Its probability is the product of the
    probabilities of its tokens from left to right, each after the ones before it. The probabilities are not normalized
    over the targets. Compare only targets with the same number of tokens: the others are fills of another sentence.

    Raises:
        Refused: the sentence has no mask or too many tokens, or a target cannot be the fill of a mask.
    """
    if not targets:
        raise Refused("fill-mask: no target given; pass at least one word")
    masked = find_masks(model, tokenizer, sentence)
    cells = [(mask, target.strip()) for mask in masked.masks for target in targets]
    copies: list[MaskedCopy] = []
    counts = []
    for mask, target in cells:
        token_ids = _token_ids(tokenizer, masked.text[: mask.start], target)
        length = len(masked.input_ids) + len(token_ids) - 1
        if length > max_sequence_length(model.config):
            raise Refused(
                f"fill-mask: with the target {target!r} the sentence has {length} tokens, more than the model has "
                "positions; shorten the sentence"
            )
        copies += _masked_copies(masked, mask.position, token_ids, tokenizer.mask_token_id)
        counts.append(len(token_ids))
    of_tokens = np.split(log_probabilities(predict, copies, tokenizer.pad_token_id), np.cumsum(counts)[:-1])
    fills = [
        TargetFill(
            target, float(np.exp(found.sum())), count, f"{masked.text[: mask.start]}{target}{masked.text[mask.end :]}"
        )
        for (mask, target), found, count in zip(cells, of_tokens, counts, strict=True)
    ]
    size = len(targets)
    return TargetAnswer(sentence, [fills[start : start + size] for start in range(0, len(fills), size)])


def _masked_copies(masked: MaskedText, position: int, token_ids: list[int], mask_token_id: int) -> list[MaskedCopy]:
    """One copy per token of a target: the tokens before it are filled in, it and those after it are masked."""
    before, after = masked.input_ids[:position], masked.input_ids[position + 1 :]
    copies = []
    for number, token_id in enumerate(token_ids):
        inside = np.array(token_ids[:number] + [mask_token_id] * (len(token_ids) - number), np.int32)
        copies.append(MaskedCopy(np.concatenate([before, inside, after]), position + number, token_id))
    return copies


def _token_ids(tokenizer: Any, before: str, target: str) -> list[int]:
    """The tokens of `target` as they would be after the text `before`, with a space only if `before` ends with one."""

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    if not target:
        raise Refused("fill-mask: a target is empty; separate the targets by single commas")
    left = before.rstrip()
    known, together = tokenize(left), tokenize(f"{left}{' ' * (left != before)}{target}")
    if together[: len(known)] != known:
        raise Refused(
            f"fill-mask: the target {target!r} forms one token with the text {left[-20:]!r}; write a space before the "
            "mask"
        )
    token_ids = together[len(known) :]
    if tokenizer.unk_token_id in token_ids:
        raise Refused(
            f"fill-mask: the target {target!r} contains a character that is not in the vocabulary (it gives the token "
            f"{tokenizer.unk_token}); omit the target"
        )
    if not token_ids or set(token_ids).intersection(tokenizer.all_special_ids):
        raise Refused(f"fill-mask: the target {target!r} is not a word; omit it")
    return token_ids


def describe_targets(answer: TargetAnswer) -> str:
    """The probabilities at each mask as numbers and bars, as lines of text."""
    lines = [answer.sentence]
    for number, fills in enumerate(answer.fills, start=1):
        lines += [*heading(number, len(answer.fills)), *(f"  {row}" for row in _rows(fills))]
    return "\n".join(lines + _notes([answer]))


def describe_targets_side_by_side(names: list[str], answers: list[TargetAnswer]) -> str:
    """The probabilities of two models, one column each, and their differences."""
    columns = [[_rows(fills, _BAR // 2) for fills in answer.fills] for answer in answers]
    columns.append([[_show(each, "+") for each in row] for row in differences(answers)])
    lines = [answers[0].sentence, *columns_of_masks([*names, "difference"], columns)]
    return "\n".join(lines + _notes(answers))


def differences(answers: list[TargetAnswer]) -> list[list[float]]:
    """For each mask and target, the probability of the second answer minus that of the first."""
    first, second = ([[fill.probability for fill in fills] for fills in answer.fills] for answer in answers)
    return [[b - a for a, b in zip(*both, strict=True)] for both in zip(first, second, strict=True)]


def _rows(fills: list[TargetFill], bar: int = _BAR) -> list[str]:
    width = max(len(fill.target) for fill in fills)
    rows = []
    for fill in fills:
        tokens = f"{fill.num_tokens} tokens" if fill.num_tokens > 1 else ""
        after = "  ".join(filter(None, ["█" * round(bar * fill.probability), tokens]))
        rows.append(f"{fill.target:<{width}}  {_show(fill.probability):>8}  {after}".rstrip())
    return rows


def _show(probability: float, sign: str = "") -> str:
    """In percent; in scientific notation where a percentage of two decimals would be 0."""
    return format(probability, f"{sign}.1e" if 0 < abs(probability) < 5e-5 else f"{sign}.2%")


def _notes(answers: list[TargetAnswer]) -> list[str]:
    counts = [{fill.num_tokens for fill in fills} for answer in answers for fills in answer.fills]
    return [_NOT_COMPARABLE] if any(len(each) > 1 for each in counts) else []
