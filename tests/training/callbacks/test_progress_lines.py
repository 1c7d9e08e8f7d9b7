"""Plain progress lines, one per event."""

import pytest

from tf_mlm.run.events import EndEvent, EpochEvent, StepEvent


def test_a_step_and_an_epoch_are_one_line_each(tensorflow: None, capsys: pytest.CaptureFixture[str]) -> None:
    from tf_mlm.training.callbacks.progress_lines import ProgressLines

    lines = ProgressLines(num_train_steps=20, epochs=2, first_step=0)
    lines.show(StepEvent(step=10, epoch=1, loss=None, learning_rate=2e-5, tokens_per_second=1234.5, mfu=0.5))
    validation = {"loss": 95.0, "perplexity": 1.8e41, "masked_accuracy": 0.25, "masked_accuracy_top_5": 0.5}
    lines.show(EpochEvent(step=10, epoch=1, loss=5.0, learning_rate=2e-5, validation=validation))
    lines.show(EndEvent(step=20, epoch=2))
    lines.close()
    step, epoch = capsys.readouterr().err.strip().splitlines()
    assert step.startswith("step 10/20  epoch 1/2  loss –  rate 2e-05  1,234 tokens/s (50% MFU)  0:00:")
    assert epoch.startswith(
        "epoch 1/2  loss 5.0000  val_loss 95.0000  val_perplexity 1.80e+41  val_masked_accuracy 25.00%  "
        "val_masked_accuracy_top_5 50.00%  0 tokens/s"
    )
