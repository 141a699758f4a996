"""Cancel acts in the middle of a forward pass, and leaves the models as they were."""

import pytest

from cast.errors import Cancelled
from cast.interrupting import interruptible
from cast.progress import Progress


@pytest.mark.parametrize("reported", [[], [Progress("heads", 1, 2)]])
def test_a_cancel_stops_within_a_forward_pass(tiny_model, reported):
    lm = tiny_model("llama")
    batch, heard, asked = lm.encode(["One", "two"]), [], []

    def stop_at_the_second_block(progress):
        heard.append(progress)
        if len(heard) == 2 + len(reported):
            raise Cancelled("The job was cancelled.")

    with interruptible([lm], stop_at_the_second_block) as told:
        for progress in reported:
            told(progress)
        counter = lm.architecture.blocks[2].register_forward_pre_hook(lambda *_: asked.append(1))
        with pytest.raises(Cancelled):
            lm.model(batch.input_ids)
        counter.remove()
    assert heard == [*reported, *2 * (reported or [Progress("load", 1, 1)])]
    assert asked == []
    assert not any(block._forward_pre_hooks for block in lm.architecture.blocks)
