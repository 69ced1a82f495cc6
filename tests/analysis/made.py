"""Ground truth and results made by hand."""

import contextlib
import io

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO

# Height and width of the images.
SIZE = 100


def shape(box):
    """Box and mask of a rectangle (x, y, width, height)."""
    x, y, w, h = box
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[y : y + h, x : x + w] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    return {"bbox": list(map(float, box)), "segmentation": rle, "area": float(w * h)}


def ground_truth(objects, num_images=2, categories=(3, 7, 9)):
    """Objects are (image id, category id, box) or (image id, category id, box, iscrowd)."""
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{i + 1}.png", "height": SIZE, "width": SIZE}
            for i in range(num_images)
        ],
        "categories": [{"id": id, "name": f"class {id}"} for id in categories],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "iscrowd": int(any(crowd)), **shape(b)}
            for n, (i, c, b, *crowd) in enumerate(objects)
        ],
    }
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def results(*detections):
    """Detections are (image id, category id, box, score)."""
    made = []
    for image_id, category_id, box, score in detections:
        made.append(
            {"image_id": image_id, "category_id": category_id, "score": score, **shape(box)}
        )
        del made[-1]["area"]
    return made
