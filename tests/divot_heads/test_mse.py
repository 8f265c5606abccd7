import torch

from divot_heads.mse import MSEHead


def test_loss_is_the_mean_squared_error_of_the_sample():
    head = MSEHead(8, 4)
    hidden, target = torch.randn(3, 5, 8), torch.randn(3, 5, 4)
    expected = torch.nn.functional.mse_loss(head.sample(hidden), target)
    torch.testing.assert_close(head.loss(hidden, target), expected)


def test_samples_settle_on_the_average_of_two_equally_likely_targets():
    torch.manual_seed(0)
    head = MSEHead(4, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2, fused=True)
    for step in range(200):
        loss = head(torch.ones(1, 1, 4), torch.full((1, 1, 2), 1.0 if step % 2 else -1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert head.sample(torch.ones(1, 1, 4)).abs().max() < 0.2
