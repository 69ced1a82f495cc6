"""The generated data sets of the study. Each is difficult in one respect."""

from mrcnn_plugin.data.shapes import Scene, register_scene

# Of 128 px, the side of an image: 10 to 24 px, and 10 to 110 px.
SMALL = Scene(diameter=(0.08, 0.19), number=(8, 16))
SCALES = Scene(diameter=(0.08, 0.86))
# The most frequent class is drawn 100 times as often as the rarest, with equal ratios between.
LONG_TAIL = Scene(frequency=(100.0, 21.5, 4.6, 1.0))

# name -> (number of images, seed, scene)
DATASETS: dict[str, tuple[int, int, Scene]] = {
    "ablations_shapes_small_train": (400, 1, SMALL),
    "ablations_shapes_small_val": (100, 2, SMALL),
    "ablations_shapes_scales_train": (400, 1, SCALES),
    "ablations_shapes_scales_val": (100, 2, SCALES),
    "ablations_shapes_long_tail_train": (400, 1, LONG_TAIL),
    # Frequencies are equal, so that every class has enough objects to measure its AP.
    "ablations_shapes_long_tail_val": (100, 2, Scene()),
}
# `--opts DATASETS.TEST` can name these larger sets. Their first hundred images are those of the sets above.
DATASETS |= {
    f"{name}1000": (1000, seed, scene)
    for name, (_, seed, scene) in DATASETS.items()
    if name.endswith("_val")
}


def register() -> None:
    """Registers the data sets. Calling this twice is harmless."""
    for name, (num_images, seed, scene) in DATASETS.items():
        register_scene(name, num_images, seed, scene)
