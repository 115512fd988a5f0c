"""Small aggregators in the forms of other papers, which are not NetVLAD."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, K = 10, 6


class SALAD(nn.Module):
    """Optimal transport to clusters and a dustbin, and a token (Izquierdo and Civera, CVPR 2024)."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Conv2d(D, 8, 1), nn.ReLU(), nn.Conv2d(8, K, 1))
        self.features = nn.Sequential(nn.Conv2d(D, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.token = nn.Linear(D, 5)
        self.dustbin = nn.Parameter(torch.ones(()))

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        x, token = x
        scores = self.score(x).flatten(2)
        scores = torch.cat((scores, self.dustbin.expand(len(x), 1, scores.shape[2])), 1)
        for _ in range(3):  # Sinkhorn
            scores = scores - scores.logsumexp(1, keepdim=True)
            scores = scores - scores.logsumexp(2, keepdim=True)
        aggregated = torch.einsum("bkp,bdp->bdk", scores.exp()[:, :K], self.features(x).flatten(2))
        parts = F.normalize(self.token(token), dim=1), F.normalize(aggregated, dim=1).flatten(1)
        return F.normalize(torch.cat(parts, 1), dim=1)


class MixVPR(nn.Module):
    """MLPs over the positions of whole maps, then two projections (Ali-bey et al., WACV 2023)."""

    def __init__(self, positions: int = 20):
        super().__init__()
        mixer = (
            nn.LayerNorm(positions),
            nn.Linear(positions, positions),
            nn.ReLU(),
            nn.Linear(positions, positions),
        )
        self.mix = nn.Sequential(*mixer)
        self.channels = nn.Linear(D, 4)
        self.rows = nn.Linear(positions, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = self.channels((x + self.mix(x)).transpose(1, 2)).transpose(1, 2)
        return F.normalize(self.rows(x).flatten(1), dim=1)


class SAGE(nn.Module):
    """Weights of the positions from their norms, then bilinear pooling (Chen et al., ICLR 2026)."""

    def __init__(self):
        super().__init__()
        self.probe = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
        self.left, self.right = nn.Conv2d(D, K, 1), nn.Conv2d(D, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.probe(x.norm(dim=1, keepdim=True).movedim(1, -1)).movedim(-1, 1)
        x = x * (1 + 0.5 * weights)
        pooled = self.left(x).flatten(2).softmax(2) @ self.right(x).flatten(2).transpose(1, 2)
        return F.normalize(pooled.flatten(1), dim=1)


class HardVLAD(nn.Module):
    """Every token goes to its nearest centre alone, as AnyLoc does it (Keetha et al., RA-L 2023)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("c_centers", torch.randn(K, D))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=2)
        nearest = (x @ F.normalize(self.c_centers, dim=1).T).argmax(2)
        assignment = F.one_hot(nearest, K).to(x.dtype)
        vlad = assignment.transpose(1, 2) @ x - assignment.sum(1).unsqueeze(2) * self.c_centers
        return F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1)


class AnyLoc(HardVLAD):
    pass
