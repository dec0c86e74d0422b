"""The figures that questions from the press rest on: what is public of Dojo, A100 and H100.

The core knows no backend, so they stand here once more; tests hold them against the machine
descriptions that backend dojo models with.
"""

from fsdtrain.planning.record import Sourced

HC34 = "Hot Chips 34, Dojo: Super-Compute System Scaling for ML Training"
HC34_NODE = "Hot Chips 34, The Microarchitecture of Tesla's Exa-Scale Computer"
NOTES = "notes of the Hot Chips 34 and AI Day 2022 slides"
SA = "SemiAnalysis 2021-08-20, of AI Day 2021"
CC = "Chips and Cheese, Hot Chips 34 - Tesla's Dojo Microarchitecture"
STH = "ServeTheHome, Hot Chips 34"
AI_DAY = "artificialintelligence-news.com 2022-10-03, of AI Day 2022"
ARTICLE = "press articles about Dojo's goal of 100 exaflops, announced in July 2023"


def published(name: str, value: float, unit: str, source: str) -> Sourced:
    """A figure that others have printed."""
    return Sourced(name=name, value=value, unit=unit, origin="PUBLISHED", source=source)


NODES_PER_DIE = published("nodes of a D1", 354, "", f"{NOTES}; {SA}")
FLOP_PER_CLOCK = published(
    "a node and clock, 8 x 8 x 4 multiply-adds", 512, "FLOP", f"{HC34_NODE}, 8x8x4 matrix pipe"
)
CLOCK = published("clock", 2e9, "Hz", f"{CC}; {SA}")
SRAM_PER_NODE = published("SRAM of a node", 1.25e6, "B", HC34_NODE)
DIES_PER_TILE = published("D1 of a tile", 25, "", HC34)
TILES_PER_TRAY = published("tiles of a tray", 6, "", f"{HC34}; {SA}")
TRAYS_PER_CABINET = published("trays of a cabinet", 2, "", NOTES)
CABINETS_PER_EXAPOD = published("cabinets of an ExaPOD", 10, "", f"{SA}; {NOTES}")
INTERFACES_PER_TRAY = published("interface processors of a tray", 20, "", NOTES)
INTERFACES_PER_EDGE = published("interface processors of a tile's edge", 5, "", STH)
HBM_PER_INTERFACE = published("HBM of an interface processor", 32e9, "B", HC34)
HBM_RATE = published("HBM rate of an interface processor", 800e9, "B/s", HC34)
DIE_WATTS = published("a D1", 400, "W", SA)
TRAY_WATTS = published("a tray, over 100 kW", 100e3, "W", HC34)
DIES_PER_EDGE = published("D1 along an edge of a tile", 5, "", HC34)
DIE_OVER_TILE_EDGE = published("a D1 over a tile's edge, one way", 900e9, "B/s", CC)
LANES_PER_DIE = published("lanes of a D1", 576, "", f"{NOTES}; {SA}")
LANE_RATE = published("a lane, one way", 112e9 / 8, "B/s", f"112 Gb/s; {SA}")
EDGES = published("edges", 4, "", "geometry")
BOTH_WAYS = published("ways", 2, "", "in and out")

A100_PEAK = published("A100, BF16, dense", 312e12, "FLOP/s", "NVIDIA A100 80GB SXM datasheet")
A100_WATTS = published("an A100", 400, "W", "NVIDIA A100 80GB SXM datasheet")
DGX_A100_WATTS = published("a DGX A100, at most", 6500, "W", "NVIDIA DGX A100 datasheet")
H100_PEAK = published("H100, BF16, dense", 989e12, "FLOP/s", "NVIDIA H100 SXM datasheet")
GPUS_PER_BOX = published("GPUs of a box", 8, "", "DGX A100")

# What was said in public.
HUNDRED_EXAFLOPS = published("100 exaflops", 100e18, "FLOP/s", ARTICLE)
PEAK_SAID = published("peak of a D1, as printed", 362e12, "FLOP/s", f"{NOTES}; {SA}")
DIES_SAID = published("over 276,000 D1", 276_000, "D1", ARTICLE)
A100S_SAID = published("about 320,500 A100", 320_500, "A100", ARTICLE)
EXAPOD_PEAK_SAID = published("an ExaPOD, as printed", 1.1e18, "FLOP/s", f"{SA}; AI Day 2022")
EXAPOD_SRAM_SAID = published("SRAM of an ExaPOD, as printed", 1.3e12, "B", HC34)
EXAPOD_HBM_SAID = published("HBM of an ExaPOD, as printed", 13e12, "B", HC34)
TILE_EDGE_SAID = published("an edge of a tile, as printed", 9e12, "B/s", HC34)
TILE_EDGES_SAID = published("all edges of a tile, as printed", 36e12, "B/s", HC34)
BISECTION_SAID = published("bisection of a tile, as printed", 10e12, "B/s", HC34)
EFFICIENCY_SAID = published(
    "work a watt against GPUs, as said", 1.3, "times", f"{SA}: a projection"
)
LOAD_TEST_SAID = published("load test that tripped a substation, over", 2e6, "W", AI_DAY)
EXAPODS_PLANNED = published("ExaPODs planned at Palo Alto", 7, "", AI_DAY)
H100_EQUIVALENTS = published(
    "H100 that Dojo 1 was to equal by the end of 2024", 8000, "", "E. Musk, a plan; right-ai.com"
)
BOXES_PER_TILE = published("GPU boxes that a tile is said to replace", 6, "", AI_DAY)
CABINETS_SAID = published("cabinets that are said to replace 72 racks", 4, "", "press, AI Day 2022")
GPUS_SAID = published("GPUs of those 72 racks", 4000, "", "press, AI Day 2022")
