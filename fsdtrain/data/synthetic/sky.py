"""The colour of the sky: horizon to zenith, the glow of the sun, clouds and distant hills."""

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.compiled import compiled


@compiled
def shade_sky(
    view: Array,
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    far_m: float,
    noise: NDArray[np.float32],
    lighting: Array,
    sky: Array,
    rgb: NDArray[np.float32],
) -> None:
    """Colour the samples that show neither a solid nor ground nearer than `far_m`.

    Args:
        view: see `raycast.cast_rays`.
        depth: [V, U] from `cast_rays`.
        solid_index: [V, U] from `cast_rays`.
        far_m: from here on, the ground is sky.
        noise: [256, 256], about -1..1.
        lighting: see `ground.shade_ground`.
        sky: [4, 3] colour at the horizon, at the zenith, of distant hills, (cloud share, hill
            height as a slope, a place in the noise).
        rgb: [V, U, 3] out, linear light.
    """
    rows, columns = depth.shape
    right, down = view[2], view[3]
    row = int(sky[3, 2] * 255) & 255
    for v in range(rows):
        for u in range(columns):
            if solid_index[v, u] >= 0 or depth[v, u] < far_m:
                continue
            rx = view[1, 0] + (u + 0.5) * right[0] + (v + 0.5) * down[0]
            ry = view[1, 1] + (u + 0.5) * right[1] + (v + 0.5) * down[1]
            rz = view[1, 2] + (u + 0.5) * right[2] + (v + 0.5) * down[2]
            flat = np.sqrt(rx * rx + ry * ry) + 1e-9
            slope = rz / flat
            turn = (np.arctan2(ry, rx) + np.pi) * (256 / (2 * np.pi))
            i = int(turn)
            part = turn - i
            hill = noise[row, i & 255] * (1 - part) + noise[row, (i + 1) & 255] * part
            if slope < sky[3, 1] * (1.0 + 0.8 * hill):
                for c in range(3):
                    rgb[v, u, c] = sky[2, c]
                continue
            length = np.sqrt(flat * flat + rz * rz)
            up = max(rz / length, 0.0)
            toward = (rx * lighting[0, 0] + ry * lighting[0, 1] + rz * lighting[0, 2]) / length
            glow = max(toward, 0.0) ** 24
            rise = 1.0 - (1.0 - up) ** 3
            cloud = 0.0
            if sky[3, 0] > 0.0 and up > 0.02:
                # A flat layer of clouds, thinned out towards the horizon.
                x, y = rx / (rz + 0.1 * length) * 9.0, ry / (rz + 0.1 * length) * 9.0
                fx, fy = np.floor(x), np.floor(y)
                px, py = x - fx, y - fy
                a, b = (int(fx) + row) & 255, int(fy) & 255
                c2, d2 = (a + 1) & 255, (b + 1) & 255
                low = noise[a, b] * (1 - py) + noise[a, d2] * py
                high = noise[c2, b] * (1 - py) + noise[c2, d2] * py
                density = low * (1 - px) + high * px + 2.0 * sky[3, 0] - 1.0
                cloud = min(max(1.6 * density, 0.0), 1.0) * min(1.0, 6.0 * up) * 0.8
            for c in range(3):
                base = sky[0, c] + (sky[1, c] - sky[0, c]) * rise
                base += glow * 0.5 * lighting[1, c]
                white = 0.75 * (lighting[2, c] + 0.35 * lighting[1, c])
                rgb[v, u, c] = base + cloud * (white - base)
