"""Two images are brought together within a limit."""

import torch

from medstyle.networks.deformation import DeformationFieldNetwork


def test_the_deformation_field_network_finds_a_known_shift_and_keeps_its_limit():
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8), size=(40, 36), mode="bicubic")
    target = torch.roll(image, (2, -1), (2, 3))
    network = DeformationFieldNetwork(limit=3.0)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(120):
        warped, field = network(image, target)
        loss = (warped - target)[..., 4:-4, 4:-4].abs().mean() + 0.05 * field.diff(dim=2).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inside = field[..., 8:-8, 8:-8].mean((0, 2, 3))
    torch.testing.assert_close(inside, torch.tensor([-2.0, 1.0]), atol=0.4, rtol=0)
    assert field.abs().max() <= 3
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(1e4)
    assert network(image, target)[1].abs().max() <= 3
