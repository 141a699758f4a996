"""Runners: logits where they are asked for, and sessions that cope with any prefix."""

import threading

import pytest
import torch
from conftest import FAMILIES, build_lora, build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.adapters import applied
from cast.errors import RequestError
from cast.runners import PlainRunner

TEXTS = ["Once upon a time there was a little fox", "", "The owl said"]


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_logits_are_the_models_own(self, family):
        lm = build_model(family)
        batch = lm.encode(TEXTS)
        own = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(PlainRunner(lm).logits(batch), own)

    def test_a_session_gives_what_the_whole_text_gives(self, family):
        lm = build_model(family)
        runner = PlainRunner(lm, build_lora(lm), 0.7)
        batch = lm.encode(["Once upon a time there was a fox and an owl near the river"])
        whole = runner.logits(batch)[0]
        ids = batch.input_ids[0].tolist()
        session = runner.session()
        for length in (1, 2, 7, 12, 12, 4, len(ids)):  # grows, repeats, goes back behind a sliding window
            torch.testing.assert_close(
                session.next_logits(ids[:length]), whole[length - 1], atol=1e-4, rtol=1e-4
            )


class TestPlainRunner:
    def test_logits_at_pairs_are_rows_of_the_whole(self, tiny_model):
        runner = PlainRunner(tiny_model("gemma2"))
        batch = runner.lm.encode(TEXTS)
        rows, positions = torch.tensor([0, 2, 0]), torch.tensor([3, 1, 3])
        picked = runner.logits(batch, rows, positions)
        torch.testing.assert_close(picked, runner.logits(batch)[rows, positions])

    def test_the_head_runs_only_where_it_is_asked(self, tiny_model):
        runner = PlainRunner(tiny_model("llama"))
        seen = []
        handle = runner.lm.architecture.head.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].shape)
        )
        runner.logits(runner.lm.encode(TEXTS), torch.tensor([0]), torch.tensor([2]))
        handle.remove()
        assert seen == [(1, 32)]

    def test_rows_and_positions_belong_together(self, tiny_model):
        runner = PlainRunner(tiny_model("llama"))
        with pytest.raises(RequestError, match="positions"):
            runner.logits(runner.lm.encode(TEXTS), rows=torch.tensor([0]))

    def test_a_lora_acts_with_its_strength(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        lora, batch = tiny_lora(lm), lm.encode(TEXTS)
        with applied(lm, lora, 0.5):
            expected = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(PlainRunner(lm, lora, 0.5).logits(batch), expected)
        assert torch.equal(PlainRunner(lm, lora, 0.0).logits(batch), PlainRunner(lm).logits(batch))

    def test_nothing_is_recorded_for_gradients(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        runner = PlainRunner(lm, tiny_lora(lm))
        assert not runner.logits(lm.encode(TEXTS)).requires_grad
        assert not runner.session().next_logits([lm.bos_id]).requires_grad

    def test_logits_are_float32_whatever_the_model_is(self):
        base = build_model("llama", seed=3)
        lm = type(base)("half", type(base.model)(base.model.config).to(torch.bfloat16), base.tokenizer)
        assert PlainRunner(lm).logits(lm.encode(TEXTS)).dtype == torch.float32
        assert PlainRunner(lm).session().next_logits([lm.bos_id]).dtype == torch.float32

    def test_threads_do_not_see_each_others_adapters(self, tiny_model, tiny_lora):
        lm = tiny_model("llama")
        batch = lm.encode(TEXTS)
        runners = [PlainRunner(lm, tiny_lora(lm, seed=seed)) for seed in range(3)]
        expected = [runner.logits(batch) for runner in runners]
        wrong = []

        def ask(index):
            answers = [runners[index].logits(batch) for _ in range(10)]
            wrong.extend(index for answer in answers if not torch.allclose(answer, expected[index]))

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestPlainSession:
    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=8), min_size=1, max_size=5))
    def test_any_sequence_of_prefixes(self, calls):
        runner = PlainRunner(build_model("mistral"))
        session = runner.session()
        for ids in calls:
            fresh = runner.session().next_logits(ids)
            torch.testing.assert_close(session.next_logits(ids), fresh, atol=1e-4, rtol=1e-4)

    def test_what_is_cached_does_not_run_again(self, tiny_model):
        runner = PlainRunner(tiny_model("llama"))
        seen = []
        embed = runner.lm.model.get_input_embeddings()
        handle = embed.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
        session = runner.session()
        for ids in ([0, 5, 6, 7], [0, 5, 6, 7, 8], [0, 5, 6, 9]):
            session.next_logits(ids)
        handle.remove()
        assert seen == [4, 1, 1]

    def test_a_call_that_fails_does_not_spoil_the_next(self, tiny_model):
        lm = tiny_model("llama")
        session = PlainRunner(lm).session()
        session.next_logits([0, 5, 6])

        def fail(*_):
            raise KeyboardInterrupt

        handle = lm.architecture.blocks[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            session.next_logits([0, 5, 6, 7, 8])
        handle.remove()
        again = session.next_logits([0, 5, 6, 7, 8])
        torch.testing.assert_close(again, PlainRunner(lm).session().next_logits([0, 5, 6, 7, 8]))

    def test_no_ids_and_too_many_ids(self, tiny_model):
        session = PlainRunner(tiny_model("gpt2")).session()
        with pytest.raises(RequestError, match="BOS"):
            session.next_logits([])
        with pytest.raises(RequestError, match="256"):
            session.next_logits([1] * 257)
