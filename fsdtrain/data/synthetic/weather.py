"""Light and colours of one scene: sun, sky, haze, and what the ground is made of."""

from dataclasses import dataclass

import numpy as np

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.ground_map import GroundColors
from fsdtrain.data.synthetic.primitives import Color
from fsdtrain.data.synthetic.vehicles import from_srgb


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Linear light, scaled so that a white sheet in full sun is about 1."""

    toward_sun: tuple[float, float, float]
    sun: Color
    sky_light: Color
    horizon: Color
    zenith: Color
    hills: Color
    haze_per_m: float
    cloud_share: float
    hill_slope: float
    place: float  # 0..1, where in the noise the clouds and hills are taken from

    def lighting(self) -> Array:
        """[5, 3] as `ground.shade_ground` wants it."""
        haze = (self.haze_per_m, 0.0, 0.0)
        return np.array([self.toward_sun, self.sun, self.sky_light, self.horizon, haze])

    def sky(self) -> Array:
        """[4, 3] as `sky.shade_sky` wants it."""
        rest = (self.cloud_share, self.hill_slope, self.place)
        return np.array([self.horizon, self.zenith, self.hills, rest])


# (sun strength, sun colour, sky light, horizon, zenith, sun elevation range in degrees, share);
# colours are display values.
_KINDS = (
    (0.95, (255, 246, 230), (176, 192, 214), (206, 220, 234), (88, 140, 212), (35, 70), 0.40),
    (0.80, (255, 226, 182), (170, 184, 206), (226, 214, 198), (104, 148, 206), (18, 32), 0.22),
    (0.25, (250, 246, 240), (206, 210, 216), (208, 212, 218), (168, 178, 192), (35, 65), 0.20),
    (0.0, (255, 255, 255), (208, 212, 216), (200, 204, 208), (176, 182, 190), (40, 60), 0.12),
    (0.45, (255, 190, 140), (150, 158, 190), (232, 186, 158), (92, 110, 164), (14, 20), 0.06),
)

# Terrain and its second colour, display values.
_URBAN_TERRAINS = (
    ((150, 146, 140), (128, 126, 122)),
    ((166, 156, 142), (150, 140, 126)),
    ((104, 126, 74), (84, 108, 62)),
    ((118, 116, 116), (140, 138, 134)),
)
_RURAL_TERRAINS = (
    ((96, 128, 62), (76, 106, 50)),
    ((122, 138, 70), (96, 116, 58)),
    ((168, 150, 98), (138, 126, 80)),
    ((152, 126, 96), (128, 104, 78)),
    ((196, 182, 146), (174, 158, 122)),
)


def draw_weather(rng: np.random.Generator) -> Weather:
    """Clear, low sun, hazy, overcast or dusk."""
    shares = np.array([kind[-1] for kind in _KINDS])
    strength, sun, sky_light, horizon, zenith, elevation, _ = _KINDS[
        rng.choice(len(_KINDS), p=shares / shares.sum())
    ]
    up = np.radians(rng.uniform(*elevation))
    around = rng.uniform(-np.pi, np.pi)
    level = rng.uniform(0.85, 1.1)
    tint = rng.uniform(0.98, 1.02, 3)

    def light(color: tuple[int, int, int], scale: float) -> Color:
        red, green, blue = np.array(from_srgb(*color)) * scale * level * tint
        return float(red), float(green), float(blue)

    return Weather(
        toward_sun=(
            float(np.cos(up) * np.cos(around)),
            float(np.cos(up) * np.sin(around)),
            float(np.sin(up)),
        ),
        sun=light(sun, 1.3 * strength),
        sky_light=light(sky_light, 0.62 + 0.6 * (1 - strength)),
        horizon=light(horizon, 1.0),
        zenith=light(zenith, 1.0),
        hills=light((132, 150, 150), 0.9),
        haze_per_m=float(np.exp(rng.uniform(np.log(0.0008), np.log(0.005)))),
        cloud_share=float(rng.uniform(0.15, 0.6)) if strength > 0.3 else 0.0,
        hill_slope=float(rng.uniform(0.015, 0.07)),
        place=float(rng.random()),
    )


def draw_ground_colors(rng: np.random.Generator, *, is_urban: bool, num_roads: int) -> GroundColors:
    """Asphalt from pale to nearly black, terrain from grass to paving."""
    terrains = _URBAN_TERRAINS if is_urban else _RURAL_TERRAINS
    first, second = terrains[rng.integers(len(terrains))]

    def gray(low: float, high: float, warmth: float = 4.0) -> Color:
        level, warm = rng.uniform(low, high), rng.uniform(-warmth, warmth)
        return from_srgb(level + warm, level, level - warm)

    main = gray(62, 128)
    asphalt = [main] + [main if rng.random() < 0.4 else gray(62, 132) for _ in range(num_roads - 1)]
    shade = rng.uniform(0.85, 1.12)
    paint = rng.uniform(190, 245)
    return GroundColors(
        terrain=from_srgb(*(np.array(first) * shade)),
        terrain_accent=from_srgb(*(np.array(second) * shade)),
        sidewalk=gray(140, 190, 8.0),
        kerb=gray(160, 205),
        white=from_srgb(paint, paint, paint * 0.98),
        yellow=from_srgb(paint * 0.95, paint * 0.74, paint * 0.22),
        asphalt=tuple(asphalt),
        lot=gray(72, 140),
    )
