"""Cancel acts in the middle of a forward pass, and leaves the models as they were."""

import pytest

from cast.errors import Cancelled
from cast.interrupting import interruptible
from cast.progress import Progress


def test_a_cancel_stops_within_a_forward_pass(tiny_model):
    lm = tiny_model("llama")
    batch, heard, asked = lm.encode(["One", "two"]), [], []

    def stop_at_the_second_block(progress):
        heard.append(progress)
        if len(heard) == 3:
            raise Cancelled("The job was cancelled.")

    with interruptible([lm], stop_at_the_second_block) as told:
        lm.model(batch.input_ids)  # nothing was reported yet, so nothing is asked
        told(Progress("heads", 1, 2))
        counter = lm.architecture.blocks[2].register_forward_pre_hook(lambda *_: asked.append(1))
        with pytest.raises(Cancelled):
            lm.model(batch.input_ids)
        counter.remove()
    assert heard == 3 * [Progress("heads", 1, 2)]
    assert asked == []
    assert not any(block._forward_pre_hooks for block in lm.architecture.blocks)
