"""TV-L1 for CPUs: one pair of frames, bit-identical to OpenCV's DualTVL1 and many times as fast.

Method, names and equation numbers are those of tensor.py. The image pyramid, the warp and the median filter
are OpenCV's functions. The iterations, where OpenCV spends nearly all of its time, are compiled by numba from
the code below. It is fast because an iteration passes over the image once, row by row: each plane goes
through the cache once, not once per operation. It rounds as OpenCV does, because the stopping rule amplifies
the smallest differences; the order of additions matters, so there is no `fastmath`. The compiled code is
cached in `__pycache__` or the user's cache folder, so only the first run waits some seconds for the compiler.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from numba import njit

from data import tvl1

FLOAT_EPSILON = np.finfo(np.float32).eps


def tvl1_pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the flow from `first` to `second`, both (height, width), grey 0..255.

    Returns float32 (2, height, width) in pixels, x then y. The costly steps release the GIL, so pairs can be
    computed in parallel threads.
    """
    longer: Any = 1 / tvl1.SCALE_STEP  # Any, as OpenCV's type hints don't allow a scalar factor
    I0s, I1s = [np.float32(first)], [np.float32(second)]
    for _ in tvl1.pyramid(*first.shape)[1:]:
        for images in (I0s, I1s):
            images.append(cv2.resize(images[-1], None, fx=tvl1.SCALE_STEP, fy=tvl1.SCALE_STEP))
    u = np.zeros((2, *I0s[-1].shape), np.float32)
    for I0, I1 in zip(reversed(I0s), reversed(I1s), strict=True):
        if u.shape[1:] != I0.shape:
            u = np.stack([cv2.multiply(cv2.resize(component, I0.shape[::-1]), longer) for component in u])
        u = _solve_scale(I0, I1, u)
    return u


def _solve_scale(I0: np.ndarray, I1: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Compute the flow on one scale, starting from the flow `start` (2, height, width)."""
    height, width = I0.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    edge = np.pad(I1, 1, mode="edge")
    I1x, I1y = (edge[1:-1, 2:] - edge[1:-1, :-2]) / 2, (edge[2:, 1:-1] - edge[:-2, 1:-1]) / 2
    maps = np.dstack([I1, I1x, I1y])
    # One extra row and column avoid special cases at the border. u has copies of its last row and column
    # there, so that grad u is 0; p has zeros before its first row and column.
    u = np.pad(start, ((0, 0), (0, 1), (0, 1)))
    p = np.zeros((2, 2, height + 1, width + 1), np.float32)
    u1, u2 = u[:, :height, :width]
    squares = np.empty_like(I0)
    constants = np.array([*tvl1.WEIGHTS, tvl1.EPSILON**2 * height * width], np.float32)
    for _ in range(tvl1.WARPS):
        warped = cv2.remap(maps, columns + u1, rows + u2, cv2.INTER_CUBIC)  # 0 outside the image
        I1w, I1wx, I1wy = (np.ascontiguousarray(warped[:, :, channel]) for channel in range(3))
        rho_c = I1w - I1wx * u1 - I1wy * u2 - I0
        known = I1wx, I1wy, I1wx * I1wx + I1wy * I1wy, rho_c
        for _ in range(tvl1.OUTER_ITERATIONS):
            for component in (u1, u2):
                component[:] = cv2.medianBlur(np.ascontiguousarray(component), tvl1.MEDIAN_SIZE)
            if _relax(u, p, squares, *known, *constants, tvl1.INNER_ITERATIONS):
                break
    return np.stack([u1, u2])


def _compiled(function: Callable, **options) -> Any:
    """Compile `function` with numba. The result is cached on disk if a writable folder exists."""
    try:
        return njit(function, nogil=True, cache=True, error_model="numpy", **options)
    except RuntimeError:  # "no locator available": neither here nor in the user's cache folder
        return njit(function, nogil=True, error_model="numpy", **options)


@_compiled
def _relax(u, p, squares, I1wx, I1wy, grad2, rho_c, lambda_theta, theta, tau_theta, limit, iterations):
    """Iterate eqs. (3) to (5) in place, at most `iterations` times. Return True once u is at rest, eq. (6).

    Row y of u needs rows y - 1 and y of p from the previous iteration. Row y - 1 of p needs rows y - 1 and y
    of the new u. Therefore p is updated one row behind u.
    """
    height, width = rho_c.shape
    for _ in range(iterations):
        for y in range(height + 1):
            if y < height:
                _primal_row(
                    u[0, y], u[1, y], squares[y], I1wx[y], I1wy[y], grad2[y], rho_c[y],
                    p[0, 0, y + 1], p[0, 1, y + 1], p[0, 1, y], p[1, 0, y + 1], p[1, 1, y + 1], p[1, 1, y],
                    lambda_theta, theta,
                )  # fmt: skip
                u[:, y, width] = u[:, y, width - 1]
            else:
                u[:, height] = u[:, height - 1]
            if y > 0:
                for i in range(2):
                    _dual_row(u[i, y - 1], u[i, y], p[i, 0, y], p[i, 1, y], tau_theta)
        if _at_rest(squares, limit):
            return True
    return False


@_compiled
def _primal_row(
    u1, u2, squares, I1wx, I1wy, grad2, rho_c, p11, p12, p12_above, p21, p22, p22_above, lambda_theta, theta
):
    """Apply eqs. (3) and (4) to one row, and store |change of u|^2 of its pixels in `squares`."""
    for x in range(rho_c.size):
        rho = rho_c[x] + (I1wx[x] * u1[x] + I1wy[x] * u2[x])
        bound = lambda_theta * grad2[x]
        if rho < -bound:
            step = lambda_theta
        elif rho > bound:
            step = -lambda_theta
        elif grad2[x] > FLOAT_EPSILON:
            step = -rho / grad2[x]
        else:
            step = np.float32(0)
        if x > 0:
            div_p1 = (p11[x + 1] - p11[x]) + (p12[x + 1] - p12_above[x + 1])
            div_p2 = (p21[x + 1] - p21[x]) + (p22[x + 1] - p22_above[x + 1])
        else:
            div_p1 = p11[1] + p12[1] - p12_above[1]
            div_p2 = p21[1] + p22[1] - p22_above[1]
        new1 = (u1[x] + step * I1wx[x]) + theta * div_p1
        new2 = (u2[x] + step * I1wy[x]) + theta * div_p2
        squares[x] = (new1 - u1[x]) * (new1 - u1[x]) + (new2 - u2[x]) * (new2 - u2[x])
        u1[x], u2[x] = new1, new2


@_compiled
def _dual_row(u, u_below, p1, p2, tau_theta):
    """Apply eq. (5) to one row of one flow component."""
    for x in range(u.size - 1):
        ux = u[x + 1] - u[x]
        uy = u_below[x] - u[x]
        norm = np.float32(np.sqrt(np.float64(ux) * np.float64(ux) + np.float64(uy) * np.float64(uy)))
        grown = np.float32(1) + tau_theta * norm
        p1[x + 1] = (p1[x + 1] + tau_theta * ux) / grown
        p2[x + 1] = (p2[x + 1] + tau_theta * uy) / grown


@_compiled
def _at_rest(squares, limit):
    """Whether float32 sum(squares) <= limit, if pixels are added one after the other as in OpenCV.

    The error of n such additions is at most n / 2^24 of the sum, so only close cases need this slow sum.
    """
    total = _fast_sum(squares)
    if abs(total - limit) <= total * squares.size / 2**23:
        in_order = np.float32(0)
        for y in range(squares.shape[0]):
            for x in range(squares.shape[1]):
                in_order += squares[y, x]
        return in_order <= limit
    return total <= limit


@partial(_compiled, fastmath=True)
def _fast_sum(squares):
    """Sum in any order: each row in float32, the rows in float64."""
    total = 0.0
    for y in range(squares.shape[0]):
        row = np.float32(0)
        for x in range(squares.shape[1]):
            row += squares[y, x]
        total += row
    return total
