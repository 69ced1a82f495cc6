"""Every kind of fault: what is said of it, and whether training goes on."""

from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """What a fault leads to."""

    # The data cannot be used as they are.
    ERROR = "error"
    # The data can be used, but they are probably not meant so: an error unless DATASETS.ALLOW names the kind.
    JUDGEMENT = "judgement"
    # The objects cannot be used. They are left out as long as they are few, otherwise as JUDGEMENT.
    LEFT_OUT = "left out"
    # What was meant is certain, and is used.
    REPAIRED = "repaired"
    # Worth knowing. Above a share of all objects that is given in `check_datasets`, some are as JUDGEMENT.
    NOTE = "note"
    NOTE_IF_FEW = "note if few"


class Kind(NamedTuple):
    """What is said of a kind of fault.

    Attributes:
        level: what it leads to.
        unit: what is counted.
        what: the rest of a sentence that begins with a number of units.
        then: what would be valid, or what is done with them.
    """

    level: Level
    unit: str
    what: str
    then: str


_E, _J, _L, _R, _N, _F = (
    Level.ERROR,
    Level.JUDGEMENT,
    Level.LEFT_OUT,
    Level.REPAIRED,
    Level.NOTE,
    Level.NOTE_IF_FEW,
)
_SEGMENTATION = (
    "A segmentation must be a list of polygons, [[x1, y1, x2, y2, x3, y3, ...], ...], or a run-length "
    'encoding (RLE), {"size": [height, width], "counts": ...}.'
)
_POLYGON = "A polygon must be a list [x1, y1, x2, y2, x3, y3, ...] of at least 3 points in pixels."
_RLE = (
    'An RLE must be {"size": [height, width], "counts": ...} with the size of the image; its counts are the lengths '
    "of runs of background and object by turns, column by column, and sum to height times width."
)
_BOX = "A bbox must be [x, y, width, height] in pixels, four finite numbers with a width and a height above 0."

# In the order in which they are said: what is more likely to be a cause comes first.
KINDS: dict[str, Kind] = {
    # The file
    "images_empty": Kind(
        _E, "file", "is empty: it has no image", "The list images must have at least one."
    ),
    "annotations_no_list": Kind(
        _E, "file", "has annotations that are no list", "annotations must be a list of objects."
    ),
    "annotations_missing": Kind(
        _N,
        "file",
        "has no annotations",
        "Results will be written, but there is nothing to evaluate them with.",
    ),
    "category_names": Kind(
        _J,
        "categories",
        "have a name that another category has",
        "The name of a category must be unique, or one AP hides the other.",
    ),
    # Images
    "image_form": Kind(
        _E,
        "images",
        "are no objects",
        "An image must be an object with id, file_name, height and width.",
    ),
    "image_id_form": Kind(
        _E,
        "images",
        "have no id, or one of another type",
        "The id of an image must be an integer or a text.",
    ),
    "image_id_mixed": Kind(
        _E,
        "images",
        "have a text as id while others have a number",
        "The ids of images must be all integers or all texts.",
    ),
    "image_id_twice": Kind(
        _E,
        "images",
        "have an id that another image has",
        "The id of an image must be unique; give new ids to one of two files that were merged.",
    ),
    "file_name": Kind(
        _E, "images", "have no file_name", "file_name must be a text, relative to the image root."
    ),
    "file_name_twice": Kind(
        _J,
        "images",
        "have a file that is listed twice",
        "Each would be trained on without the objects of the other: list a file once, with all its objects.",
    ),
    "size_missing": Kind(
        _E, "images", "have no height or no width", "Both must be there, in pixels."
    ),
    "size_form": Kind(
        _E,
        "images",
        "have a height or width that is no size",
        "height and width must be positive integers, in pixels.",
    ),
    "size_float": Kind(
        _R, "images", "have a height or width that is no integer", "The integer is used."
    ),
    # Image files
    "file_missing": Kind(
        _E, "image files", "do not exist", "file_name must be relative to the image root."
    ),
    "file_unreadable": Kind(
        _E, "image files", "cannot be read", "Pillow must be able to read every image."
    ),
    "file_truncated": Kind(
        _E,
        "image files",
        "are truncated or damaged",
        "Copy them again, or take them out of the file.",
    ),
    "file_too_large": Kind(
        _E,
        "image files",
        "are larger than Pillow's limit against decompression bombs",
        "Cut them into tiles.",
    ),
    "file_size": Kind(
        _E,
        "image files",
        "have another width and height than the JSON file says",
        "Boxes and masks would lie in the wrong place: the size must be that of the image as it is shown, after its "
        "EXIF rotation.",
    ),
    "file_16_bit": Kind(
        _J,
        "image files",
        "have 16 or 32 bits or floats per pixel, which would be cut off at 255",
        "Set INPUT.PIXEL_RANGE to the range that is scaled to 0 to 255, or convert them to 8 bits.",
    ),
    "file_thin": Kind(
        _E,
        "image files",
        "are so thin that they have no pixel left after they are resized as INPUT says",
        "Crop them, take them out of the file, or raise INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST.",
    ),
    # References
    "annotation_form": Kind(
        _E, "annotations", "are no objects", "An annotation must be an object."
    ),
    "image_id_missing": Kind(
        _E, "annotations", "have no image_id", "image_id must be the id of an image."
    ),
    "image_id_unknown": Kind(
        _J,
        "annotations",
        "have an image_id that no image has",
        "image_id must be the id of an image, of the same type (the text '1' is not the number 1).",
    ),
    "category_id_missing": Kind(
        _E, "annotations", "have no category_id", "category_id must be the id of a category."
    ),
    "category_id_unknown": Kind(
        _J,
        "annotations",
        "have a category_id that no category has",
        "category_id must be the id of a category, of the same type (the text '1' is not the number 1).",
    ),
    # Fields
    "ignore": Kind(
        _E,
        "annotations",
        "have the field ignore",
        'Detectron2 does not know "ignore"; remove these annotations, or set iscrowd to 1 instead.',
    ),
    "iscrowd_value": Kind(
        _E,
        "annotations",
        "have an iscrowd that is neither 0 nor 1",
        "iscrowd must be 0 for an object and 1 for a crowd.",
    ),
    "iscrowd_text": Kind(
        _J,
        "annotations",
        "have a text as iscrowd",
        "iscrowd must be a number, 0 for an object and 1 for a crowd. If allowed, the number in the text is used.",
    ),
    "iscrowd_missing": Kind(_R, "annotations", "have no iscrowd", "It is taken as 0."),
    # Segmentations
    "segmentation_flat": Kind(
        _E, "annotations", "have a segmentation that is one flat list of numbers", _SEGMENTATION
    ),
    "segmentation_text": Kind(_E, "annotations", "have a text as segmentation", _SEGMENTATION),
    "segmentation_rle_list": Kind(
        _E,
        "annotations",
        "have a list of RLE as segmentation",
        "An RLE must not be in a list. " + _SEGMENTATION,
    ),
    "segmentation_points": Kind(
        _E, "annotations", "have a segmentation with lists of points", _SEGMENTATION
    ),
    "segmentation_form": Kind(_E, "annotations", "have a malformed segmentation", _SEGMENTATION),
    "segmentation_odd": Kind(
        _E, "annotations", "have a segmentation with an odd count of numbers in a polygon", _POLYGON
    ),
    "segmentation_not_finite": Kind(
        _E, "annotations", "have a segmentation with NaN or infinity", _POLYGON
    ),
    "segmentation_far": Kind(
        _E, "annotations", "have a segmentation that reaches far outside of the image", _POLYGON
    ),
    "segmentation_relative": Kind(
        _E,
        "annotations",
        "have a segmentation within [0, 1], as if it were a share of the image's size",
        _POLYGON,
    ),
    "rle_form": Kind(_E, "annotations", "have a segmentation that is a malformed RLE", _RLE),
    "rle_size": Kind(
        _E, "annotations", "have a segmentation whose RLE has another size than the image", _RLE
    ),
    "rle_text": Kind(
        _E,
        "annotations",
        "have a segmentation whose RLE is corrupt (its counts are cut or no encoding)",
        _RLE,
    ),
    "rle_sum": Kind(
        _E,
        "annotations",
        "have a segmentation whose RLE counts do not sum to height times width",
        _RLE,
    ),
    "mask_missing": Kind(
        _E,
        "annotations",
        "have no mask (their segmentation is missing or empty)",
        "Add the masks, or set MODEL.MASK_ON to False to train on boxes.",
    ),
    "mask_missing_crowd": Kind(
        _E,
        "annotations",
        "of crowds have no mask (their segmentation is missing or empty)",
        "The evaluation of masks needs them: add them, or set MODEL.MASK_ON to False.",
    ),
    "rle": Kind(
        _E,
        "annotations",
        "have an RLE as segmentation, but INPUT.MASK_FORMAT is 'polygon'",
        "Set INPUT.MASK_FORMAT to 'bitmask'.",
    ),
    # Boxes
    "bbox_missing": Kind(_E, "annotations", "have no bbox", _BOX),
    "bbox_form": Kind(_E, "annotations", "have a bbox that is not four numbers", _BOX),
    "bbox_not_finite": Kind(_E, "annotations", "have a bbox with NaN or infinity", _BOX),
    "bbox_negative": Kind(_E, "annotations", "have a bbox with a negative width or height", _BOX),
    "bbox_empty": Kind(_L, "annotations", "have a bbox of no width or no height", _BOX),
    "bbox_outside": Kind(_L, "annotations", "have a bbox that lies outside of the image", _BOX),
    "bbox_relative": Kind(
        _J,
        "annotations",
        "have a bbox within [0, 1], as if it were a share of the image's size",
        _BOX,
    ),
    "box_mask": Kind(
        _F,
        "annotations",
        "have a bbox that contradicts the segmentation (they overlap by less than half)",
        _BOX,
    ),
    "bbox_overhang": Kind(
        _F,
        "annotations",
        "have a bbox that reaches outside of the image",
        "Detectron2 clips it. " + _BOX,
    ),
    "segmentation_overhang": Kind(
        _F,
        "annotations",
        "have a segmentation that reaches outside of the image",
        "The part outside is not used.",
    ),
    "keypoints_form": Kind(
        _E,
        "annotations",
        "have keypoints that are not three numbers for each keypoint of the category",
        "keypoints must be [x1, y1, v1, x2, y2, v2, ...], with v 0 for a point that is not labelled.",
    ),
    # What cannot be used
    "segmentation_short": Kind(
        _L,
        "annotations",
        "have a segmentation whose polygons have fewer than 3 points",
        _POLYGON,
    ),
    "mask_empty": Kind(
        _L,
        "annotations",
        "have an empty segmentation: no pixel of the image is in the mask",
        "A mask must have a pixel within the image.",
    ),
    "polygon_short": Kind(
        _R,
        "annotations",
        "have a segmentation in which some polygons have fewer than 3 points",
        "These polygons are left out.",
    ),
    # Areas, keypoints, ids, crowds
    "area_missing": Kind(
        _R, "annotations", "have no area", "The area of the mask, or else of the box, is used."
    ),
    "area_form": Kind(
        _R,
        "annotations",
        "have an area that is no number",
        "The area of the mask, or else of the box, is used.",
    ),
    "area_zero": Kind(
        _R,
        "annotations",
        "have an area of 0 or less",
        "The area of the mask, or else of the box, is used.",
    ),
    "area_odd": Kind(
        _N,
        "annotations",
        "have an area that contradicts mask and box (by more than a factor of 2)",
        "AP of small, medium and large objects follows the area of the file.",
    ),
    "keypoints_missing_crowd": Kind(
        _R, "annotations", "of crowds have no keypoints", "None of them is taken as labelled."
    ),
    "num_keypoints_missing": Kind(
        _R,
        "annotations",
        "have no num_keypoints",
        "The number of their labelled keypoints (v above 0) is used.",
    ),
    "num_keypoints_wrong": Kind(
        _R,
        "annotations",
        "have a num_keypoints that is not the number of their labelled keypoints (v above 0)",
        "Their number is used; COCO's evaluation would ignore an object with num_keypoints 0.",
    ),
    "annotation_id_twice": Kind(
        _J,
        "annotations",
        "have an id that another annotation has",
        "The id of an annotation must be unique; files that were merged often have the same id for two. If allowed, "
        "they get new ids.",
    ),
    "annotation_id_missing": Kind(
        _R, "annotations", "have no id", "All annotations get new ids, from 1."
    ),
    "annotation_id_form": Kind(
        _R, "annotations", "have an id that is no integer", "All annotations get new ids, from 1."
    ),
    "annotation_id_zero": Kind(
        _R,
        "annotations",
        "have the id 0 or a negative one, which COCO's evaluation takes for 'not matched'",
        "All annotations get new ids, from 1.",
    ),
    "object_twice": Kind(
        _N,
        "annotations",
        "are an exact copy of another",
        "They are trained on and evaluated twice.",
    ),
    "no_objects": Kind(
        _J,
        "file",
        "has no object to train on or to evaluate with",
        "At least one annotation with iscrowd 0 must be usable.",
    ),
    "crowd": Kind(
        _N,
        "annotations",
        "have iscrowd 1",
        "Crowds are not trained on, and detections on them do not count in the evaluation.",
    ),
    "many_objects": Kind(
        _N,
        "images",
        "have more objects than TEST.DETECTIONS_PER_IMAGE",
        "The others cannot be found; raise it, and the evaluation will count as many.",
    ),
    "keypoints_flip": Kind(
        _N,
        "keypoints",
        "are not exchanged with another one when INPUT.RANDOM_FLIP flips an image",
        "If some are left and others right, name each pair as left_eye and right_eye, or as eye_l and eye_r. Or set "
        "INPUT.RANDOM_FLIP to 'none'.",
    ),
    # What is worth knowing of image files
    "file_rotated": Kind(
        _N,
        "image files",
        "are rotated or mirrored by EXIF, which their size does not show",
        "Detectron2 turns them as EXIF says: make sure that the boxes were drawn so.",
    ),
    "file_frames": Kind(
        _N, "image files", "have several frames or pages", "Only the first is used."
    ),
    "files_not_looked_at": Kind(
        _N,
        "image files",
        "were not looked at, since the time was up",
        "DATASETS.CHECK 'full' looks at all; the next start goes on where this one ended.",
    ),
}
