"""TV-L1 optical flow on batches of frame pairs in PyTorch, computed as in OpenCV's DualTVL1.

Zach, Pock, Bischof: A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007; discretised as in
Sanchez, Meinhardt-Llopis, Facciolo: TV-L1 Optical Flow Estimation, IPOL 2013. Names are those of the papers;
the equation numbers are this file's and data/tvl1/cpu.py's. The flow u = (u1, u2) from I0 to I1 minimises

    |grad u1| + |grad u2| + lambda |rho(u)|, summed over the image, where around a known flow u0
(1) rho(u) = I1(x + u0) + grad I1(x + u0) . (u - u0) - I0(x) = rho_c + grad I1w . u   is the residual.

A second field v, coupled to u, splits this into two problems that are solved exactly, in turn (Zach et al.):

(2) |grad u1| + |grad u2| + |u - v|^2 / (2 theta) + lambda |rho(v)|   is minimised by
(3) v = u + clamp(-rho(u) / |grad I1w|^2, -lambda theta, lambda theta) grad I1w   (thresholding, in its three cases),
(4) u_i = v_i + theta div p_i,   where one step of Chambolle's fixed point updates u_i's dual variable p_i:
(5) p_i = (p_i + tau / theta grad u_i) / (1 + tau / theta |grad u_i|),
(6) until the mean of |change of u|^2 over the image is at most epsilon^2, or iterations run out.

This is repeated `warps` times, with u0 set to the last u, on an image pyramid from coarse to fine. As in IPOL
2013, grad I1 is a central difference, grad u a forward difference that is 0 beyond the last pixel, div its
negative adjoint, and I1 is warped bicubically. As in OpenCV, but unlike both papers, a median filter is
applied to u before every `inner_iterations`, images keep their range 0..255 and aren't smoothed, the pyramid
is bilinear, values outside the image are 0, and p is reset to 0 once per scale, not once per warp.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from data import tvl1

Planes = Sequence[Tensor]  # each (B, H, W)
Iterate = Callable[..., tuple[Tensor, ...]]


@torch.no_grad()
def tvl1_pairs(first: Tensor, second: Tensor, compiled: bool = False) -> Tensor:
    """Compute the flow between images of `first` and `second`, each (B, H, W), uint8 or float, grey 0..255.

    Returns float32 (B, 2, H, W) on the same device, in pixels, x then y. The stopping rule is applied to each
    pair separately, so a pair's flow doesn't depend on the rest of the batch. `compiled` uses torch.compile.
    """
    # On a CPU, one pair's planes stay in the cache, and checking which pairs are at rest is free. A GPU needs
    # many pairs at once, and each check makes it wait for the host; until then, pairs at rest don't change.
    batch, check_every = (1, 1) if first.device.type == "cpu" else (max(1, len(first)), 5)
    iterate = _compiled_iterate() if compiled else _iterate
    pairs = zip(first.float().split(batch), second.float().split(batch), strict=True)
    return torch.cat([_solve_pyramid(I0, I1, check_every, iterate) for I0, I1 in pairs])


@cache
def _compiled_iterate() -> Iterate:
    return torch.compile(_iterate, dynamic=True)


def _solve_pyramid(first: Tensor, second: Tensor, check_every: int, iterate: Iterate) -> Tensor:
    """Compute the flow of (B, H, W) float images, from the coarsest scale to the finest."""
    scales = [torch.stack([first, second])]  # each (2, B, height, width)
    for height, width in tvl1.pyramid(*first.shape[1:])[1:]:
        scales.append(_resize(scales[-1], height, width, 1 / tvl1.SCALE_STEP, 1 / tvl1.SCALE_STEP))
    u = first.new_zeros(len(first), 2, *scales[-1].shape[2:])
    for I0, I1 in reversed(scales):
        height, width = I0.shape[1:]
        if u.shape[2:] != I0.shape[1:]:
            u = _resize(u, height, width, u.shape[2] / height, u.shape[3] / width) / tvl1.SCALE_STEP
        u = _solve_scale(I0, I1, u, check_every, iterate)
    return u


def _solve_scale(I0: Tensor, I1: Tensor, u: Tensor, check_every: int, iterate: Iterate) -> Tensor:
    """Refine the flow `u` (B, 2, H, W) from I0 to I1 (B, H, W) on one scale."""
    edge = F.pad(I1[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    I1x, I1y = (edge[:, 1:-1, 2:] - edge[:, 1:-1, :-2]) / 2, (edge[:, 2:, 1:-1] - edge[:, :-2, 1:-1]) / 2
    maps = torch.stack([I1, I1x, I1y], 1)
    unknowns = torch.cat([u.transpose(0, 1), u.new_zeros(4, *I0.shape)])  # u1, u2, p11, p12, p21, p22: (6, B, H, W)
    for _ in range(tvl1.WARPS):
        u1, u2 = unknowns[:2]
        I1w, I1wx, I1wy = _warp(maps, u1, u2).unbind(1)
        rho_c = I1w - I1wx * u1 - I1wy * u2 - I0
        inverse = 1 / (I1wx**2 + I1wy**2).clamp(min=torch.finfo(torch.float32).eps)
        _relax(unknowns, (I1wx, I1wy, rho_c, inverse), check_every, iterate)
    return unknowns[:2].transpose(0, 1).contiguous()


def _relax(unknowns: Tensor, known: Planes, check_every: int, iterate: Iterate) -> None:
    """Iterate eqs. (3) to (6) in place. Every `check_every` iterations, drop pairs at rest from the batch.

    `check_every` divides INNER_ITERATIONS, so that no median filter is applied to a pair at rest.
    """
    weights = *tvl1.WEIGHTS, tvl1.EPSILON**2 * unknowns[0, 0].numel()
    pairs = torch.arange(unknowns.shape[1], device=unknowns.device)
    moving = torch.ones_like(pairs, dtype=torch.bool)
    state: Planes = unknowns.unbind()
    for _ in range(tvl1.OUTER_ITERATIONS):
        state = (*map(_median, state[:2]), *state[2:])
        for iteration in range(1, tvl1.INNER_ITERATIONS + 1):
            *state, moving = iterate(*state, *known, moving, *weights)
            if iteration % check_every or moving.all():
                continue
            unknowns[:, pairs[~moving]] = torch.stack([plane[~moving] for plane in state])
            pairs = pairs[moving]
            if not len(pairs):
                return
            state, known = ([plane[moving] for plane in planes] for planes in (state, known))
            moving = moving[moving]
    unknowns[:, pairs] = torch.stack(list(state))


def _iterate(
    u1: Tensor, u2: Tensor, p11: Tensor, p12: Tensor, p21: Tensor, p22: Tensor,
    I1wx: Tensor, I1wy: Tensor, rho_c: Tensor, inverse: Tensor, moving: Tensor,
    lambda_theta: float, theta: float, tau_theta: float, limit: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Do one iteration. Return u and p, updated for pairs that are `moving` (B,), and which still are."""
    here = moving[:, None, None]
    rho = rho_c + I1wx * u1 + I1wy * u2  # (1)
    step = (-rho * inverse).clamp(-lambda_theta, lambda_theta)  # (3)
    change1 = here * (step * I1wx + theta * _divergence(p11, p12))  # (3) and (4)
    change2 = here * (step * I1wy + theta * _divergence(p21, p22))
    u1, u2 = u1 + change1, u2 + change2
    new_p = *_dual_step(u1, p11, p12, tau_theta), *_dual_step(u2, p21, p22, tau_theta)  # (5)
    p11, p12, p21, p22 = (torch.where(here, new, p) for new, p in zip(new_p, (p11, p12, p21, p22), strict=True))
    return u1, u2, p11, p12, p21, p22, moving & ((change1**2 + change2**2).sum((1, 2)) > limit)  # (6)


def _dual_step(u: Tensor, p1: Tensor, p2: Tensor, tau_theta: float) -> tuple[Tensor, Tensor]:
    ux = F.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    uy = F.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    shrink = 1 / (1 + tau_theta * (ux**2 + uy**2).sqrt())
    return (p1 + tau_theta * ux) * shrink, (p2 + tau_theta * uy) * shrink


def _divergence(p1: Tensor, p2: Tensor) -> Tensor:
    return p1 - F.pad(p1[:, :, :-1], (1, 0)) + p2 - F.pad(p2[:, :-1], (0, 0, 1, 0))


def _warp(maps: Tensor, u1: Tensor, u2: Tensor) -> Tensor:
    """Sample `maps` (B, C, H, W) at x + u with bicubic interpolation, 0 outside the image.

    F.grid_sample is not used: it takes positions as fractions of the image, and their rounding makes still
    pixels move where the image is nearly flat.
    """
    height, width = maps.shape[2:]
    columns = _bicubic_taps(torch.arange(width, device=maps.device) + u1, width)
    rows = _bicubic_taps(torch.arange(height, device=maps.device)[:, None] + u2, height)
    pixels, warped = maps.flatten(2), torch.zeros_like(maps)
    for row, weight_y in rows:
        for column, weight_x in columns:
            index = (row * width + column).flatten(1)[:, None].expand(pixels.shape)
            warped.addcmul_(pixels.gather(2, index).view_as(maps), (weight_y * weight_x)[:, None])
    return warped


def _bicubic_taps(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Index and weight of the four samples around `position`: Keys' kernel, a = -0.75, weight 0 outside."""
    a = -0.75
    first = position.floor()
    after = position - first
    before = 1 - after
    outer = a * after * before**2, a * before * after**2
    near = ((a + 2) * after - (a + 3)) * after**2 + 1
    taps = []
    for offset, weight in zip((-1, 0, 1, 2), (outer[0], near, 1 - near - outer[0] - outer[1], outer[1]), strict=True):
        index = first + offset
        inside = (index >= 0) & (index < size)
        taps.append((index.clamp(0, size - 1).long(), weight * inside))
    return taps


def _resize(images: Tensor, height: int, width: int, step_y: float, step_x: float) -> Tensor:
    """Sample bilinearly, (..., height, width); steps are in input pixels, the first sample half a step in."""
    for dim, size, step in ((-2, height, step_y), (-1, width, step_x)):
        last = images.shape[dim] - 1
        position = ((torch.arange(size, dtype=torch.float64, device=images.device) + 0.5) * step - 0.5).clamp(0, last)
        low = position.long()
        weight = (position - low).float()
        weight = weight[:, None] if dim == -2 else weight
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, (low + 1).clamp(max=last)), weight)
    return images


def _median(images: Tensor) -> Tensor:
    """Median-filter (B, H, W); edge pixels are repeated."""
    edge = F.pad(images[:, None], (tvl1.MEDIAN_SIZE // 2,) * 4, mode="replicate")
    return F.unfold(edge, tvl1.MEDIAN_SIZE).median(1).values.view_as(images)
