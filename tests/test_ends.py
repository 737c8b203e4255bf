"""Logits at a few positions are those of the whole run there, whatever the family; hooks see what they saw."""

import torch

from talking_heads_utils.forward.ends import logits_at


def test_logits_at_some_places_are_those_of_the_whole_run(case):
    bridge, prompts = case
    end = prompts.positions["end"]
    places = torch.stack([end, end - 1, torch.zeros_like(end)], 1)
    with torch.no_grad():
        whole = bridge(prompts.tokens)
        with logits_at(bridge, places):
            found, cache = bridge.run_with_cache(prompts.tokens)
        after, plain = bridge.run_with_cache(prompts.tokens)
    expected = whole[torch.arange(len(prompts))[:, None], places]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3, "places that agree would prove nothing"
    assert after.shape == whole.shape, "and the model is left as it was"
    last = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    torch.testing.assert_close(cache[last], plain[last], atol=1e-4, rtol=1e-4)
