"""The loss against its formula."""

import torch

from backend.train.loss import per_sample, sample_weights, squared_error, weighted_share


def test_squared_error_is_the_mean_over_each_sample_in_float32() -> None:
    predicted, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    loss = per_sample(squared_error(predicted.half(), target.half()))
    expected = torch.stack(
        [torch.nn.functional.mse_loss(p.half().float(), t.half().float()) for p, t in zip(predicted, target)]
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_shares_of_a_step_add_up_to_the_weighted_mean_over_all_its_samples() -> None:
    per_sample = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    weights = sample_weights([False, True, False, True, False], 0.5)
    assert weights.tolist() == [1.0, 0.5, 1.0, 0.5, 1.0]
    shares = [weighted_share(per_sample[part], weights[part], 5) for part in (slice(0, 2), slice(2, 4), slice(4, 5))]
    assert sum(shares) == (1 + 1 + 4 + 4 + 16) / 5
